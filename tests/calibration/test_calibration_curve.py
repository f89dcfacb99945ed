"""The curves of accuracy against bytes, on a tiny network: what is measured, and what is made of it."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import dcompress

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)  # as the tool sets them


def small_subject():
    """A network whose labels are what it says itself, so that the dense one is right everywhere."""
    from calibration_networks import Subject

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 5)).eval()
    basis = torch.randn(8, 32)  # inputs that go together, as those of real layers do
    calibration, held_back, test = (torch.randn(n, 8) @ basis for n in (256, 64, 300))
    labels = model(test).argmax(1)
    return Subject("small", model, calibration, held_back, test, labels, (0.02, 0.16))


def settings(*methods, steps):
    from calibration_curve import Settings
    from peer_client import Peers

    return Settings(methods, Peers("no such interpreter"), [1.0], 1, steps, None, 1)


def test_rows_say_what_a_file_decodes_to():
    from calibration_curve import measure

    subject = small_subject()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    dense, coarse, fine = measure("small", subject, settings("no data", steps="0.5,0.02"))
    assert dense == {
        "model": "small", "who": "dense", "bytes": 4 * (32 * 48 + 48 + 48 * 5 + 5), "accuracy": 100.0,
        "cross_entropy": dense["cross_entropy"], "kl": 0.0,
    }  # fmt: skip
    assert coarse["bytes"] < fine["bytes"] < dense["bytes"] / 3
    assert coarse["kl"] > 10 * fine["kl"] > 0
    assert coarse["accuracy"] < fine["accuracy"]
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, before[name])

    frame = dcompress.save(before, recipe=dcompress.Recipe(step=0.5), effort=1)
    assert len(frame) == coarse["bytes"]
    subject.model.load_state_dict(dcompress.load(frame))
    with torch.no_grad():
        logits = subject.model(subject.test).double()
    right = float((logits.argmax(1) == subject.labels).double().mean())
    loss = float(nn.functional.cross_entropy(logits, subject.labels))
    assert (coarse["accuracy"], coarse["cross_entropy"]) == pytest.approx((100 * right, loss))


def test_calibrated_files_keep_the_answers_better_at_equal_bytes():
    from calibration_curve import measure
    from calibration_tables import bytes_at, of

    subject = small_subject()
    rows = measure("small", subject, settings("no data", "calibrated", "layer by layer", steps="4"))
    without = bytes_at(of(rows, "no data"), "kl", 0.005)
    for who in ("calibrated", "layer by layer"):
        assert [row["setting"] for row in of(rows, who)] == [
            f"step {step}" for step in (0.16, 0.08, 0.04, 0.02)
        ]
        assert bytes_at(of(rows, who), "kl", 0.005) < 0.9 * without


def test_bytes_between_files():
    from calibration_tables import bytes_at, front, levels_of, smallest

    def row(who, n_bytes, kl, accuracy=90.0, cross_entropy=1.0):
        figures = {"accuracy": accuracy, "cross_entropy": cross_entropy}
        return {"who": who, "bytes": n_bytes, "kl": kl} | figures

    peer = [row("nncodec", 800, 0.01, 91.0), row("nncodec", 200, 1.0, 80.0), row("nncodec", 900, 0.5)]
    ours = [row("no data", 400, 0.01, 90.0), row("no data", 50, 1.0, 88.0)]
    assert [one["bytes"] for one in front(peer, "kl")] == [200, 800]
    assert bytes_at(peer, "kl", 0.1) == pytest.approx(400)
    assert bytes_at(peer, "kl", 0.01) == pytest.approx(800)
    assert bytes_at(peer, "kl", 0.009) is bytes_at(peer, "kl", 1.1) is bytes_at([], "kl", 0.1) is None
    rows = [row("dense", 9000, 0.0), *peer, *ours]
    assert levels_of(rows, "kl")[0] == {
        "level": "0.01", "nncodec": 800, "no data": 400, "no data ratio": pytest.approx(0.5),
    }  # fmt: skip
    assert [one["level"] for one in levels_of(rows, "kl")] == [
        "0.01",
        "0.02",
        "0.05",
        "0.1",
        "0.2",
        "0.5",
        "1",
    ]
    by_error = levels_of(rows, "error")
    assert [one["level"] for one in by_error] == [f"{lost:g} points lost" for lost in (0.1, 0.2, 0.5, 1, 2)]
    assert by_error[-1]["no data"] == 50
    assert [(one["who"], one["bytes"]) for one in smallest(rows)] == [("nncodec", 800), ("no data", 400)]


def test_steps_and_qps():
    from calibration_curve import fitting_qps, spaced

    assert spaced((0.1, 0.4), 3) == [0.4, 0.2, 0.1]
    assert fitting_qps((0.25, 0.5), 1) == [-4, -5, -6, -7, -8, -9, -10, -11]
    assert fitting_qps((0.25, 1.0), 2) == [0, -2, -4, -6, -8, -10]


def write_mnist(folder, n_train, n_test):
    """Write idx files of images that are a bright bar; the row of the bar is the label."""
    rng = np.random.default_rng(0)
    for split, n in (("train", n_train), ("t10k", n_test)):
        labels = rng.integers(0, 10, n).astype(np.uint8)
        images = rng.integers(0, 60, (n, 28, 28)).astype(np.uint8)
        images[np.arange(n), 2 * labels.astype(int) + 3] = 250
        header = struct.pack(">4I", 0x803, n, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels.tobytes())


def test_networks_take_images():
    from calibration_networks import KINDS

    for name, kind in KINDS.items():
        shape = (3, 3, 32, 32) if name == "resnet20" else (3, 1, 28, 28)
        assert kind.build().eval()(torch.rand(shape)).shape == (3, 10)


def test_a_network_is_trained_once_and_measured(tmp_path, monkeypatch):
    import calibration_curve
    import calibration_networks

    data, models = tmp_path / "data", tmp_path / "models"
    for folder in (data, models):
        folder.mkdir()
    write_mnist(data, 660, 100)
    monkeypatch.setattr(calibration_networks, "HELD_OUT", 20)
    monkeypatch.setattr(calibration_networks, "BATCH", 16)
    arguments = ["gru", "--data", str(data), "--models", str(models), "--peer-python", sys.executable]
    arguments += ["--methods", "no data", "--steps", "0.4,0.02", "--effort", "1"]
    first = CliRunner().invoke(calibration_curve.main, [*arguments, "--json", str(tmp_path / "1.json")])
    assert first.exit_code == 0, first.output
    assert "epoch 2 of 2" in first.output
    picture = tmp_path / "curve.svg"
    more = ["--json", str(tmp_path / "2.json"), "--rows", str(tmp_path / "1.json"), "--plot", str(picture)]
    second = CliRunner().invoke(calibration_curve.main, [*arguments, *more, "--methods", ""])
    assert second.exit_code == 0, second.output
    assert "epoch" not in second.output
    rows = json.loads((tmp_path / "1.json").read_text())
    assert rows == json.loads((tmp_path / "2.json").read_text())
    assert [row["who"] for row in rows] == ["dense", "no data", "no data"]
    assert rows[0]["accuracy"] > 25  # chance is 10
    assert picture.read_text().count("dcompress, no data") == 1
    model = calibration_networks.RowGRU()
    weights = dcompress.load(dcompress.save(model.state_dict()))
    calibration_networks.fill(model, weights)
    with pytest.raises(KeyError, match=r"another model: head\.bias"):
        calibration_networks.fill(model, {n: w for n, w in weights.items() if n != "head.bias"})
