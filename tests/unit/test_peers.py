"""The peers' benchmark, without peers: its sets, its searches, ours."""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

TOOLS = Path(__file__).parents[2] / "tools"
SIDE = 64


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def small_weights():
    rng = np.random.default_rng(1)
    return {
        "a.weight": rng.laplace(size=(40, 30)).astype(np.float32),
        "a.bias": rng.standard_normal(40).astype(np.float32),
        "b.weight": rng.laplace(size=(8, 4, 3, 3)).astype(np.float32),
    }


def test_labels_count_ranks_from_zero():
    import peer_sets

    made = peer_sets.make_set("some", peer_sets.matrices(small_weights()), 0.8, 7)
    assert list(made.labels) == ["a.weight", "b.weight"]
    assert made.density == pytest.approx(0.2, abs=0.01)
    for name, labels in made.labels.items():
        weights = made.checkpoint.tensors[name].words.view(np.float32).reshape(labels.shape)
        assert labels.shape == small_weights()[name].shape
        np.testing.assert_array_equal(np.sign(labels), np.sign(weights))
        order = np.argsort(labels, axis=None)
        assert (np.diff(weights.reshape(-1)[order]) >= 0).all()
        assert np.unique(labels).size == np.unique(weights).size == 8


def test_an_empty_tensor_has_labels_too():
    import peer_sets

    weights = {"big": np.full((4, 8), 1.0, np.float32), "small": np.full((4, 8), 0.5, np.float32)}
    made = peer_sets.make_set("some", weights, 0.5, 3)
    assert not made.labels["small"].any()
    assert made.codebook_bytes == 4
    assert made.entropy_bytes == 0


def test_ours_is_measured_without_peers():
    import peer_client
    import peer_labels
    import peer_sets

    made = next(peer_sets.suite_sets(peer_sets.FIXTURES, SIDE, "laplace"))
    effort = peer_labels.Effort((6,), (1, 2), 1, 0.0)
    rows = peer_labels.measure_set(made, peer_client.Peers(sys.executable), [], effort)
    assert [row.get("threads") for row in rows] == [None, 1, 2]
    assert rows[1]["bytes"] == rows[2]["bytes"] > rows[0]["bytes"] > 0
    assert rows[1]["decode_mb_s"] > 0
    assert "size_ratio" not in rows[1]


def test_ratios_are_to_nncodec_with_codebooks():
    import peer_labels
    import peer_sets

    made = next(peer_sets.suite_sets(peer_sets.FIXTURES, SIDE, "laplace"))
    rows = [
        {"who": peer_labels.BASE, "bytes": 100, "encode_seconds": 4.0, "decode_seconds": 2.0},
        {"who": "x", "effort": 6, "threads": 1, "bytes": 90, "encode_seconds": 1.0, "decode_seconds": 0.5},
        {"who": "broken"},
    ]
    full = peer_labels._add_ratios(made, rows, 0.25)
    assert full[1]["size_ratio"] == 0.9
    assert (full[1]["encode_x"], full[1]["decode_x"], full[1]["decode_copies"]) == (4, 4, 2)
    peer_labels.print_set(made, full)
    peer_labels.print_summary(full)


def test_missing_peers_are_named(capsys):
    import peer_client

    assert peer_client.Peers("no/such/python").installed() == {}
    assert capsys.readouterr().out.count("not installed: ") == 4


def test_a_failing_worker_is_one_error():
    import peer_client

    with (
        peer_client.Peers(sys.executable).share({"w": np.ones(3, np.int32)}) as workplace,
        pytest.raises(peer_client.PeerError, match="Error"),
    ):
        workplace.ask(task="labels", peer="zstd -3")


def test_byte_coders_give_labels_back():
    import peer_worker

    arrays = [np.arange(-3, 5, dtype=np.int32).reshape(2, 4), np.array([-300, 0, 7], np.int32)]
    codec = peer_worker.byte_codec(arrays, zlib.compress, zlib.decompress)
    packed = codec.encode()
    assert codec.size(packed) == sum(map(len, packed))
    for array, low, decoded in zip(arrays, codec.lowest, codec.decode(packed), strict=True):
        assert decoded.dtype == (np.uint8 if array.size == 8 else np.uint16)
        np.testing.assert_array_equal(decoded.astype(np.int32) + low, array.reshape(-1))


@pytest.mark.parametrize("target", [3.0, 10.0, 22.4, 31.0])
def test_the_two_qps_around_a_target_are_found(target):
    import peer_worker

    def sqnr(qp):
        return -14 - 1.4 * qp + 0.2 * np.sin(qp)

    coarser, finer = peer_worker.surround(sqnr, target)
    assert coarser == finer + 1
    assert sqnr(coarser) < target <= sqnr(finer)


def test_an_sqnr_out_of_reach_is_an_error():
    import peer_worker

    with pytest.raises(ValueError, match="no qp gives 50 dB"):
        peer_worker.surround(lambda qp: 20.0, 50)


def test_sizes_between_points_lie_on_a_line():
    import peer_lossy

    points = [{"sqnr": 20.0, "bytes": 9}, {"sqnr": 12.0, "bytes": 400}, {"sqnr": 10.0, "bytes": 100}]
    assert peer_lossy.size_at(points, 11.0) == pytest.approx(200)


def test_files_of_ours_reach_an_sqnr():
    import peer_lossy

    ours = peer_lossy.Ours(small_weights(), effort=1)
    row, weights = ours.reach(15.0, tolerance=0.2)
    assert row["sqnr"] == pytest.approx(15, abs=0.2)
    assert {name: array.shape for name, array in weights.items()} == {
        name: array.shape for name, array in small_weights().items()
    }


def test_both_commands_run_without_peers(tmp_path):
    import peers

    model, rows = tmp_path / "m.npz", tmp_path / "rows.json"
    np.savez(model, **small_weights())
    common = [str(model), "--effort", "1", "--peer-python", "no/such/python", "--json", str(rows)]
    result = CliRunner().invoke(peers.main, ["labels", "--rounds", "1", *common], catch_exceptions=False)
    assert "m 90 % pruned, 31 values: 1,488 weights in 2 tensors" in result.output
    assert {row["set"] for row in json.loads(rows.read_text())} == {"m 90 % pruned, 31 values"}
    result = CliRunner().invoke(peers.main, ["lossy", "--sqnr", "10,14", *common], catch_exceptions=False)
    assert "m: 1,528 weights, 1,488 in matrices and kernels" in result.output
    assert [row["sqnr"] for row in json.loads(rows.read_text()) if "sqnr" in row] == [10, 14]


def test_resnet20_takes_only_its_own_weights():
    import resnet20
    import torch

    model = resnet20.ResNet20()
    weights = {name: value.numpy() for name, value in model.state_dict().items() if value.ndim}
    images = resnet20.Images(torch.zeros(10, 3, 32, 32), torch.arange(10))
    model.eval()
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(images.pixels), images.labels)
    accuracy, cross_entropy = resnet20.evaluate(weights, images)
    assert accuracy == pytest.approx(10)
    assert cross_entropy == pytest.approx(float(expected))
    del weights["linear.weight"]
    with pytest.raises(KeyError, match=r"linear\.weight"):
        resnet20.evaluate(weights, images)
