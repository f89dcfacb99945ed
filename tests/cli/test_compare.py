from __future__ import annotations

import json
import math

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from dcompress.cli.tables import decibels


def test_identical_models(dcz, folder):
    dcz("encode", folder / "tiny.safetensors", "--preset", "lossless", "-q")
    result = dcz("compare", folder / "tiny.safetensors", folder / "tiny.dcz")
    assert result.stdout.splitlines()[-1] == "identical: 4 tensors"
    assert dcz("compare", "-q", folder / "tiny.safetensors", folder / "tiny.dcz").stdout == ""


def test_differences_are_measured(dcz, folder):
    report = json.loads(
        dcz("compare", "--json", folder / "lenet.safetensors", folder / "lenet.dcz", code=1).stdout
    )
    encoded = json.loads(dcz("info", "--json", folder / "lenet.dcz").stdout)
    assert report["identical"] is False
    rows = {row["name"]: row for row in report["tensors"]}
    assert rows["fc1.bias"]["identical"]
    for tensor in encoded["tensors"]:
        if tensor["sqnr_db"] is not None:
            assert abs(rows[tensor["name"]]["sqnr_db"] - tensor["sqnr_db"]) < 0.01
            assert rows[tensor["name"]]["max_error"] > 0


def test_names_shapes_and_dtypes(dcz, folder):
    model = load_file(folder / "tiny.safetensors")
    save_file(
        {
            "fc.weight": model["fc.weight"].T.copy(),
            "fc.bias": model["fc.bias"].astype(np.float64),
            "steps": np.array(13, np.int64),
            "other": np.ones(1),
        },
        folder / "b.safetensors",
    )
    stdout = dcz("compare", folder / "tiny.safetensors", folder / "b.safetensors", code=1).stdout
    results = {line.split()[0]: line for line in stdout.splitlines()}
    assert results["fc.weight"].endswith("shape 40x64 in B")
    assert results["fc.bias"].endswith("float32 in A, float64 in B")
    assert results["steps"].split()[2] == "1"
    assert results["empty"].endswith("only in A")
    assert results["other"].endswith("only in B")
    assert stdout.endswith("5 of 5 tensors differ\n")


def test_bits_are_not_compared_with_values(dcz, folder):
    torch.save({"a": torch.ones(4, dtype=torch.bfloat16)}, folder / "m.pt")
    dcz("encode", folder / "m.pt", "-q")
    dcz("decode", folder / "m.dcz", "-o", folder / "m.npz", "-q")
    stdout = dcz("compare", folder / "m.pt", folder / "m.npz", code=1).stdout
    assert stdout.splitlines()[1].split() == ["a", "4", "bfloat16", "in", "A,", "uint16", "in", "B"]
    row = json.loads(dcz("compare", "--json", folder / "m.pt", folder / "m.npz", code=1).stdout)["tensors"][0]
    assert "sqnr_db" not in row


def test_no_ratio_is_minus_zero():
    assert decibels(-0.04) == decibels(0.0) == "0.0 dB"
    assert (decibels(-0.06), decibels(-math.inf)) == ("-0.1 dB", "-inf dB")


def test_trouble_is_two_or_more_as_with_cmp(fails, folder):
    fails("compare", folder / "gone.pt", folder / "lenet.dcz", code=2, says="No such file")
    fails("compare", folder / "lenet.dcz", folder, code=2, says="folder")
    fails("compare", "-", "-", code=2, says="only one")
    data = bytearray((folder / "lenet.dcz").read_bytes())
    data[2000] ^= 1
    (folder / "bad.dcz").write_bytes(data)
    fails("compare", folder / "lenet.dcz", folder / "bad.dcz", code=3, says="bad.dcz: .*CHK-01")
    fails("compare", folder / "bad.dcz", folder / "lenet.dcz", code=3, says="bad.dcz: .*CHK-01")


def test_many_identical_tensors_are_one_line(dcz, folder):
    model = {f"norm.{i}": np.full(8, i) for i in range(50)}
    save_file(model, folder / "a.safetensors")
    save_file({**model, "norm.9": np.zeros(8, np.int64)}, folder / "b.safetensors")
    stdout = dcz("compare", folder / "a.safetensors", folder / "b.safetensors", code=1).stdout
    assert "+ 49 identical tensors" in stdout
    assert "norm.9" in stdout
    assert "norm.8" not in stdout
