from __future__ import annotations

import builtins
import json
import re
from importlib import util

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def model(folder):
    rng = np.random.default_rng(5)
    tensors = {
        "fc1.weight": rng.normal(size=(60, 90)).astype(np.float32),
        "fc1.bias": rng.normal(size=60).astype(np.float32),
        "fc2.weight": rng.laplace(size=(30, 50)).astype(np.float32),
    }
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def test_prints_a_table_and_writes_nothing(dcz, model, listing):
    result = dcz("tune", model, "-1", "--from", "10", "--to", "30", "--points", "5")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["quality", "bytes", "ratio", "bits/weight", "step"]
    assert len(lines) == 8
    assert [float(line.split()[0]) for line in lines[1:6]] == pytest.approx([10, 15, 20, 25, 30], abs=0.4)
    assert [line.split()[0] for line in lines[6:]] == ["balanced", "lossless"]
    assert lines[-1].split()[-1] == "exact"
    assert result.stderr == ""


def test_json(dcz, model, folder):
    out = folder / "curve.json"
    dcz("tune", model, "-2", "--quality", "20,12", "--json", out, "-q", "--exclude", "fc2*")
    content = json.loads(out.read_text())
    assert content["effort"] == 2
    assert content["recipe"] == {"preset": "balanced", "exclude": ["fc2*"]}
    assert [point["sqnr_db"] for point in content["points"]] == pytest.approx([12, 20], abs=0.051)
    for point in (*content["points"], content["balanced"], content["lossless"]):
        assert point["ratio"] == pytest.approx(4 * (5400 + 60 + 1500) / point["file_bytes"])
        assert point["bits_per_matrix_weight"] == pytest.approx(8 * point["file_bytes"] / 6900)
    assert content["lossless"]["sqnr_db"] is None
    dcz("encode", model, "-q")
    assert content["balanced"]["file_bytes"] == (folder / "model.dcz").stat().st_size
    shown = dcz("tune", model, "-2", "--quality", "20,12", "--json", "-", "--exclude", "fc2*").stdout
    assert json.loads(shown) == content


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture(dcz, fails, model, folder, suffix, start):
    pytest.importorskip("matplotlib")
    out = folder / f"curve.{suffix}"
    args = ("tune", model, "-1", "--from", "10", "--to", "20", "--points", "2", "-q", "--plot", out)
    dcz(*args)
    picture = out.read_bytes()
    assert picture.startswith(start)
    fails(*args, code=1, says="output file exists already; add -f")
    dcz(*args, "-f")
    if suffix == "svg":
        assert out.read_bytes() == picture
        for words in ("model.safetensors", "lossless: ", "preset balanced: ", "SQNR of all matrices"):
            assert words in picture.decode()


def test_without_matplotlib_it_says_what_to_install(fails, model, folder, listing, monkeypatch):
    find_spec = util.find_spec
    monkeypatch.setattr(
        "dcompress.cli.plot.find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    says = r"--plot needs matplotlib: pip install 'dcompress\[plot\]'"
    fails("tune", model, "--plot", folder / "a.png", code=2, says=says)


def test_matplotlib_is_imported_for_a_picture_only(dcz, model, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **options):
        assert not name.startswith("matplotlib"), name
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    dcz("tune", model, "-1", "--points", "1", "--from", "20")


def test_points_that_nothing_comes_near_to_are_named(dcz, model):
    result = dcz("tune", model, "-1", "--quality", "15,150")
    assert result.stderr == "dcz: note: no step comes near to 150 dB\n"
    assert len(result.stdout.splitlines()) == 4


def test_verbose_says_what_each_trial_came_to(dcz, model):
    found = re.findall(
        r"dcz: step [\d.]+: [\d.]+ dB, [\d,]+ bytes\n", dcz("tune", model, "-1v", "--points", "2").stderr
    )
    assert len(found) >= 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("gone.safetensors", 1, "gone.safetensors: No such file"),
        ("-", 2, "standard input"),
        ("model.safetensors --from 30 --to 20", 2, "is no range"),
        ("model.safetensors --from 0", 2, "is no range"),
        ("model.safetensors --points 0", 2, "--points"),
        ("model.safetensors --quality 10,x", 2, "'10,x' is no list of numbers"),
        ("model.safetensors --quality 10,-1", 2, "every quality must be above 0"),
        ("model.safetensors --plot a.gif", 2, "must end with .png, .svg, .pdf"),
        ("model.safetensors --plot nowhere/a.png", 1, "folder does not exist"),
        ("model.safetensors --json tiny.safetensors", 1, "exists already; add -f"),
        ("model.safetensors --exclude *", 2, "no matrix or kernel that is free"),
        ("model.safetensors --set *:bist=2", 2, "did you mean 'bits'"),
        ("lenet.dcz", 2, "a .dcz file already"),
    ],
)
def test_errors(fails, folder, model, listing, monkeypatch, args, code, says):
    monkeypatch.chdir(folder)
    fails("tune", *args.split(), code=code, says=says)
