from __future__ import annotations

import json

from dcompress.decode import open_frame


def damage(frame, *names):
    """Flip a bit in the payload of some tensors."""
    with open_frame(frame) as reader:
        records = reader.directory.tensors
        places = [records[name].chunks[0].offset + 9 for name in names]
    data = bytearray(frame.read_bytes())
    for place in places:
        data[place] ^= 16
    frame.write_bytes(data)


def test_ok_is_one_line(dcz, folder):
    result = dcz("verify", folder / "lenet.dcz")
    assert result.stdout.startswith("ok: 6 tensors, 6 chunks, ")
    assert result.stderr == ""
    assert dcz("verify", "-q", folder / "lenet.dcz").stdout == ""


def test_every_damaged_tensor_is_listed(dcz, folder):
    frame = folder / "lenet.dcz"
    damage(frame, "fc1.weight", "fc2.bias")
    result = dcz("verify", frame, code=3)
    lines = result.stderr.splitlines()
    assert result.stdout == ""
    assert ["'fc1.weight'" in lines[0], "'fc2.bias'" in lines[1]] == [True, True]
    assert all(line.startswith(f"dcz: {frame}: ") for line in lines)
    assert "damaged: 2 of 6 tensors" in lines[2]


def test_json_lists_damages(dcz, folder):
    damage(folder / "lenet.dcz", "fc3.weight")
    report = json.loads(dcz("verify", folder / "lenet.dcz", "--json", code=3).stdout)
    assert (report["ok"], report["n_damaged"]) == (False, 1)
    assert report["damages"][0]["tensor"] == "fc3.weight"
    assert report["damages"][0]["rule"] == "CHK-01"


def test_damaged_receipt_is_found(dcz, folder):
    frame = folder / "lenet.dcz"
    data = bytearray(frame.read_bytes())
    data[-5] ^= 1
    frame.write_bytes(data)
    stderr = dcz("verify", frame, code=3).stderr
    assert "SEC-01" in stderr
    assert "damaged: 0 of 6 tensors" in stderr


def test_limit_is_no_damage(fails, folder):
    fails("verify", folder / "lenet.dcz", "-M", "100k", code=5, says="LIM-05")


def test_reads_stdin(dcz, folder):
    assert dcz("verify", "-", stdin=(folder / "lenet.dcz").read_bytes()).stdout.startswith("ok: ")
