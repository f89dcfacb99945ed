from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import dcompress.numpy


def test_prints_a_table_with_totals(dcz, folder):
    result = dcz("encode", folder / "lenet.safetensors", "--preset", "paper", "-f")
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        *("tensor", "shape", "dtype", "density", "centroids"),
        *("bits/weight", "SQNR", "bytes", "coder"),
    ]
    assert lines[1].split()[:5] == ["fc1.weight", "300x784", "float32", "9.0", "%"]
    assert "exact" in lines[2]
    size = (folder / "lenet.dcz").stat().st_size
    assert lines[-2].startswith("6 tensors, 266,610 weights, ")
    assert lines[-1] == f"1,066,440 -> {size:,} bytes, ratio {1066440 / size:.2f}: {folder / 'lenet.dcz'}"
    assert [line.split()[3] for line in lines[1:7]] == ["9.0", "-", "9.0", "-", "25.0", "-"]
    assert result.stderr == ""


def test_output_stands_beside_the_input(dcz, folder):
    dcz("encode", folder / "tiny.safetensors")
    assert (folder / "tiny.dcz").exists()
    assert (folder / "tiny.safetensors").exists()
    torch.save({"a": torch.ones(3)}, folder / "run.pth.tar")
    dcz("encode", folder / "run.pth.tar", "-q")
    assert (folder / "run.dcz").exists()


def test_a_preset_that_changes_a_lot_says_so_in_one_line(dcz, folder):
    rng = np.random.default_rng(3)
    model = {f"fc{k}.weight": rng.uniform(-1, 1, size=(60, 80)).astype(np.float32) for k in range(3)}
    save_file(model, folder / "dense.safetensors")
    options = ("encode", folder / "dense.safetensors", "-f")
    note = dcz(*options, "--preset", "paper").stderr
    assert re.fullmatch(
        r"dcz: note: paper changed 3 tensors by a lot \(lowest SQNR \d\.\d dB: fc[012]\.weight\); "
        r"fine-tune afterwards, or use balanced\n",
        note,
    )
    for more in (("--preset", "balanced"), ("--preset", "paper", "--sparsity", "0.9"), ("-q",)):
        assert dcz(*options, *more).stderr == ""


def test_json_says_the_same(dcz, folder):
    result = dcz("encode", folder / "lenet.safetensors", "--preset", "paper", "-f", "--json")
    report = json.loads(result.stdout)
    assert report["file_bytes"] == (folder / "lenet.dcz").stat().st_size
    assert report["recipe"] == {"preset": "paper"}
    weight, bias = report["tensors"][:2]
    assert (weight["name"], weight["shape"], weight["centroids"]) == ("fc1.weight", [300, 784], 32)
    assert weight["density"] == pytest.approx(0.09, abs=1e-4)
    assert weight["exact"] is False
    assert weight["sqnr_db"] > 15
    assert (bias["exact"], bias["sqnr_db"], bias["centroids"]) == (True, None, None)
    stored = sum(tensor["stored_bytes"] for tensor in report["tensors"])
    rest = report["head_bytes"] + report["table_bytes"] + sum(report["sections"].values())
    assert report["file_bytes"] == stored + rest


def test_dry_run_shows_the_plan_and_writes_nothing(dcz, folder, listing):
    result = dcz("encode", folder / "lenet.safetensors", "--dry-run", "--preset", "paper")
    assert "prune 91 %, kmeans 32" in result.stdout
    assert result.stderr == "dcz: note: dry run: nothing was written\n"
    rows = json.loads(dcz("encode", folder / "lenet.safetensors", "--dry-run", "--json").stdout)["tensors"]
    assert [row["plan"] for row in rows[:2]] == ["kmeans 256", "lossless"]


def test_dry_run_gives_the_size_of_the_real_run(dcz, folder):
    model = folder / "lenet.safetensors"
    size = json.loads(dcz("encode", model, "--dry-run", "--json", "-q").stdout)["file_bytes"]
    dcz("encode", model, "-f", "-q")
    assert (folder / "lenet.dcz").stat().st_size == size


def test_quiet_prints_nothing(dcz, folder):
    result = dcz("encode", folder / "tiny.safetensors", "-q")
    assert result.stdout == result.stderr == ""


def test_verbose_says_how_long_it_took(dcz, folder):
    assert " s on 1 threads" in dcz("encode", folder / "tiny.safetensors", "-v", "-T1").stderr


def test_stdout_gets_the_frame_and_stderr_the_table(dcz, folder):
    result = dcz("encode", folder / "tiny.safetensors", "-o", "-")
    dcz("encode", folder / "tiny.safetensors", "-q")
    assert result.stdout_bytes == (folder / "tiny.dcz").read_bytes()
    assert "fc.weight" in result.stderr


def test_options_reach_the_recipe(dcz, folder):
    options = ("--sparsity", "0.5", "--set", "fc2.*:bits=3,sparsity=0.8", "--exclude", "fc3*", "--dry-run")
    rows = json.loads(dcz("encode", folder / "lenet.safetensors", *options, "--json").stdout)["tensors"]
    plans = {row["name"]: row["plan"] for row in rows}
    assert plans["fc1.weight"] == "prune 50 %, kmeans 256"
    assert plans["fc2.weight"] == "prune 80 %, kmeans 8"
    assert plans["fc3.weight"] == "lossless"


def test_command_line_comes_on_top_of_the_recipe_file(dcz, folder):
    (folder / "r.toml").write_text('preset = "paper"\nbits = 4\n[[rule]]\npattern = "fc1*"\nbits = 2\n')
    options = ("--recipe", folder / "r.toml", "--dry-run", "--json", "-q")
    report = json.loads(dcz("encode", folder / "lenet.safetensors", *options).stdout)
    assert report["recipe"]["preset"] == "paper"
    assert [row["plan"] for row in report["tensors"][::2]][:2] == [
        "prune 91 %, kmeans 4",
        "prune 91 %, kmeans 16",
    ]
    options = (*options, "--preset", "balanced", "--bits", "3")
    report = json.loads(dcz("encode", folder / "lenet.safetensors", *options).stdout)
    assert [row["plan"] for row in report["tensors"][::2]][:2] == ["kmeans 4", "kmeans 8"]


def test_receipt_can_be_left_out(dcz, folder):
    dcz("encode", folder / "lenet.safetensors", "-f", "-q", "--no-receipt")
    report = json.loads(dcz("info", folder / "lenet.dcz", "--json").stdout)
    assert report["sections"] == {}
    assert report["recipe"] is None


def test_not_finite_weights_are_kept_with_a_note(dcz, folder):
    weights = load_file(folder / "tiny.safetensors")
    weights["fc.weight"][3, 4] = np.nan
    weights["fc.weight"][5, 6] = np.inf
    save_file(weights, folder / "nan.safetensors")
    result = dcz("encode", folder / "nan.safetensors", "--bits", "4")
    assert result.stderr == (
        "dcz: note: tensor 'fc.weight' holds 2 NaN or infinite values: it is stored losslessly\n"
    )
    assert "nan" not in result.stdout.replace("nan.dcz", "")
    dcz("compare", folder / "nan.safetensors", folder / "nan.dcz")


def test_many_small_tensors_are_one_line(dcz, folder):
    model = {f"norm.{i}": np.random.default_rng(i).normal(size=8) for i in range(50)}
    save_file(model, folder / "many.safetensors")
    result = dcz("encode", folder / "many.safetensors")
    assert "+ 50 small tensors, lossless: 400 weights, " in result.stdout
    assert "norm.7" not in result.stdout
    assert "norm.7" in dcz("info", folder / "many.dcz", "-v").stdout


def test_reads_a_training_checkpoint_and_says_so(dcz, folder):
    weight = torch.arange(6.0).reshape(2, 3)
    model = {"module.a": weight, "module.b": weight, "module.c": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({"state_dict": model, "epoch": 4}, folder / "run.pt")
    result = dcz("encode", folder / "run.pt", "--strip-module-prefix")
    assert "left out: epoch" in result.stderr
    assert result.stdout.splitlines()[2].split()[-3:] == ["tied", "=", "a"]
    assert list(dcompress.numpy.load_file(folder / "run.dcz")) == ["a", "b", "c"]


def test_names_cannot_play_with_the_terminal(dcz, folder):
    save_file({"a\x1b[2J\nb": np.ones(3)}, folder / "evil.safetensors")
    result = dcz("encode", folder / "evil.safetensors")
    assert "\x1b" not in result.stdout
    assert r"a\x1b[2J\nb" in result.stdout


def test_a_model_without_tensors(dcz, folder):
    save_file({}, folder / "none.safetensors")
    assert "no tensors" in dcz("encode", folder / "none.safetensors").stdout
    assert "no tensors" in dcz("info", folder / "none.dcz").stdout
    dcz("decode", folder / "none.dcz", "-f")
    assert "identical" in dcz("compare", folder / "none.dcz", folder / "none.safetensors").stdout
