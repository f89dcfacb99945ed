from __future__ import annotations

import json


def test_shows_sizes_recipe_metadata_and_tensors(dcz, folder):
    lines = dcz("info", folder / "lenet.dcz").stdout.splitlines()
    assert lines[0].startswith("format 1.0: head ")
    assert lines[1] == "recipe: paper"
    assert any(line == "metadata: model = lenet_300_100" for line in lines)
    row = next(line for line in lines if line.startswith("fc2.weight"))
    assert "100x300" in row
    assert " dB" in row


def test_says_what_encode_said(dcz, folder):
    encoded = json.loads(
        dcz("encode", folder / "lenet.safetensors", "--preset", "paper", "-f", "--json").stdout
    )
    shown = json.loads(dcz("info", folder / "lenet.dcz", "--json").stdout)
    for row, other in zip(shown["tensors"], encoded["tensors"], strict=True):
        assert abs((row.pop("sqnr_db") or 0) - (other.pop("sqnr_db") or 0)) < 0.01
        if row["density"] is None:  # only encode counts the zeros of tensors that are not coded as runs
            other["density"] = None
            if row["centroids"] is not None:  # and zero may count as one of them
                assert row["centroids"] - other["centroids"] in (0, 1)
                other["centroids"] = row["centroids"]
        assert row == other
    for key in ("file_bytes", "head_bytes", "sections", "ratio", "metadata", "recipe"):
        assert shown[key] == encoded[key]


def test_payload_is_not_touched(dcz, folder):
    frame = folder / "lenet.dcz"
    expected = dcz("info", frame).stdout
    data = bytearray(frame.read_bytes())
    data[1000] ^= 1
    frame.write_bytes(data)
    assert dcz("info", frame).stdout == expected


def test_without_receipt_there_is_no_error_column(dcz, folder):
    dcz("encode", folder / "lenet.safetensors", "-f", "-q", "--no-receipt")
    stdout = dcz("info", folder / "lenet.dcz").stdout
    assert "SQNR" not in stdout
    assert "recipe" not in stdout


def test_reads_stdin(dcz, folder):
    data = (folder / "lenet.dcz").read_bytes()
    assert dcz("info", "-", stdin=data).stdout == dcz("info", folder / "lenet.dcz").stdout


def test_rules_are_shown(dcz, folder):
    options = ("--set", "fc1*:sparsity=0.9,bits=4", "--exclude", "fc2*", "--bits", "6")
    dcz("encode", folder / "lenet.safetensors", "-f", "-q", *options)
    stdout = dcz("info", folder / "lenet.dcz").stdout
    assert "recipe: balanced; bits 6; set fc1*:sparsity=0.9,bits=4; exclude fc2*" in stdout
