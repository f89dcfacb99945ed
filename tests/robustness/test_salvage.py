"""What is left of a damaged file: every tensor that is sound, and a list of the others with their reasons."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import dcompress
import dcompress.numpy
from dcompress.checksum import checksum
from dcompress.constants import CODER_CONTEXT
from dcompress.decode import open_frame
from dcompress.errors import ChecksumError, CorruptError, LimitError, NotDczError, TruncatedError
from dcompress.limits import DecodeLimits
from tests.checks import flipped
from tests.properties.test_frames import small_model

FRAME, _ = small_model()
with open_frame(FRAME) as _reader:
    RECORDS = _reader.directory.tensors
    TABLE_SETS = _reader.directory.table_sets
    SECTIONS = _reader.directory.sections
SOUND = dcompress.numpy.load(FRAME)
CHUNKS = [(name, n) for name, r in RECORDS.items() if r.alias_of is None for n in range(len(r.chunks))]
STORED = list(dict.fromkeys(name for name, _ in CHUNKS))


def family(name):
    """Return a tensor and its aliases."""
    return {name} | {one for one, record in RECORDS.items() if record.alias_of == name}


def check(arrays, damages, lost):
    """Check that exactly these tensors are lost, and that the others are as they were."""
    assert {damage.tensor for damage in damages} - {None} == lost
    assert list(arrays) == [name for name in SOUND if name not in lost]
    for name, array in arrays.items():
        assert array.dtype == SOUND[name].dtype
        assert array.tobytes() == SOUND[name].tobytes()


def test_a_sound_frame_is_whole(kernel):
    arrays, damages = dcompress.numpy.salvage(FRAME)
    check(arrays, damages, set())
    assert damages == []
    assert arrays["tied"] is arrays["b.labels"]


@pytest.mark.parametrize(("name", "number"), CHUNKS)
def test_each_chunk_in_turn(kernel, name, number):
    chunk = RECORDS[name].chunks[number]
    for place in {chunk.offset, chunk.offset + chunk.n_bytes // 2, chunk.offset + chunk.n_bytes - 1}:
        arrays, damages = dcompress.numpy.salvage(flipped(FRAME, 8 * place + 3))
        check(arrays, damages, family(name))
        assert {(type(d), d.rule, d.offset) for d in damages} == {(ChecksumError, "CHK-01", chunk.offset)}


def test_aliases_of_a_lost_tensor_are_lost_too():
    _, (first, second) = dcompress.numpy.salvage(flipped(FRAME, 8 * RECORDS["b.labels"].chunks[0].offset))
    assert (first.tensor, second.tensor, first.rule, second.rule) == ("b.labels", "tied", "CHK-01", "CHK-01")
    assert "shares the storage of 'b.labels'" in str(second)


@pytest.mark.parametrize("number", range(len(TABLE_SETS)))
def test_a_damaged_table_set_loses_those_that_use_it(number):
    users = {"c.trellis"} if number == 0 else {"c.context"}
    assert all(RECORDS[name].coder == CODER_CONTEXT for name in users)
    arrays, damages = dcompress.numpy.salvage(flipped(FRAME, 8 * TABLE_SETS[number].offset))
    check(arrays, damages, users)


def test_every_end_that_is_cut_off(kernel):
    head = TABLE_SETS[0].offset
    for length in range(head, len(FRAME)):
        arrays, damages = dcompress.numpy.salvage(FRAME[:length])
        lost = {
            name
            for first in STORED
            for name in family(first)
            if any(c.offset + c.n_bytes > length for c in RECORDS[first].chunks)
        }
        if length < TABLE_SETS[1].offset + TABLE_SETS[1].n_bytes:
            lost |= {"c.trellis", "c.context"}
        check(arrays, damages, lost)
        assert type(damages[0]) is TruncatedError
        assert (damages[0].rule, damages[0].offset, damages[0].tensor) == ("FRM-01", length, None)


def test_bytes_that_follow_do_no_harm():
    arrays, (damage,) = dcompress.numpy.salvage(FRAME + b"more")
    check(arrays, [damage], set())
    assert (type(damage), damage.rule) == (CorruptError, "FRM-06")


def test_all_but_one():
    places = [RECORDS[name].chunks[0].offset for name in STORED if name != "a.raw"]
    damaged = bytearray(FRAME)
    for place in places:
        damaged[place] ^= 0xFF
    arrays, damages = dcompress.numpy.salvage(bytes(damaged))
    check(arrays, damages, set(SOUND) - {"a.raw", "none"})


def test_a_wrong_digest_loses_its_tensor():
    """Damage within the coder's bytes, sealed anew: only the digest can tell."""
    frame = bytearray(FRAME)
    record = RECORDS["b.fixed"]
    chunk = record.chunks[-1]
    frame[chunk.offset] ^= 0x80
    stored = bytes(frame[chunk.offset : chunk.offset + chunk.n_bytes])
    frame = bytes(frame).replace(chunk.checksum.to_bytes(4, "little"), checksum(stored).to_bytes(4, "little"))
    head_bytes = TABLE_SETS[0].offset
    seal = checksum(frame[:16] + frame[20:head_bytes]).to_bytes(4, "little")
    arrays, damages = dcompress.numpy.salvage(frame[:16] + seal + frame[20:])
    check(arrays, damages, {"b.fixed"})
    assert damages[0].rule in ("DIG-01", "FIX-03")


@pytest.mark.parametrize("place", [0, 9, 12, 16, 20, 60, 90])
def test_without_its_directory_nothing_can_be_told(place):
    with pytest.raises((NotDczError, CorruptError, TruncatedError, dcompress.UnsupportedError, LimitError)):
        dcompress.numpy.salvage(flipped(FRAME, 8 * place))
    with pytest.raises((NotDczError, TruncatedError)):
        dcompress.numpy.salvage(FRAME[:place])


def test_limits_are_no_damage():
    with pytest.raises(LimitError, match="max_output_bytes=100"):
        dcompress.numpy.salvage(FRAME, limits=DecodeLimits(max_output_bytes=100))


def test_memory_that_is_not_there_is_no_damage(monkeypatch, fails, tmp_path):
    def refuse(record, zeros):
        raise LimitError("there is no memory", rule="LIM-05", tensor=record.name)

    (tmp_path / "m.dcz").write_bytes(FRAME)
    monkeypatch.setattr("dcompress.decode.allocate", refuse)
    with pytest.raises(LimitError, match="no memory"):
        dcompress.numpy.salvage(FRAME)
    fails("verify", tmp_path / "m.dcz", code=5, says="no memory")
    fails("decode", tmp_path / "m.dcz", "--salvage", "-o", tmp_path / "o.npz", code=5, says="no memory")


def test_a_torch_section_over_the_limit_is_no_damage():
    frame = dcompress.save({"w": torch.ones(3), "text": "long " * 9})
    with pytest.raises(LimitError, match="max_section_bytes=9"):
        dcompress.salvage(frame, limits=DecodeLimits(max_section_bytes=9))


def test_a_frame_cut_off_may_not_ask_for_more_than_its_bytes_allow():
    """The usual ratio is that of the bytes that are there, not of those that were promised."""
    arrays = {"w": np.zeros(1 << 20, np.float32), "x": np.arange(5000, dtype=np.uint16)}
    frame = dcompress.numpy.save(arrays, recipe="lossless")
    with open_frame(frame[:-900], partial=True) as reader:
        assert reader.limits.output_bytes(len(frame) - 900) == 1 << 32
        reader.directory = reader.directory.__class__(**{**reader.directory.__dict__, "frame_bytes": 1 << 60})
        reader.limits = DecodeLimits(max_output_bytes=None)
        record = reader.directory.tensors["w"]
        huge = record.__class__(**{**record.__dict__, "shape": (1 << 40,)})
        with pytest.raises(LimitError, match="max_output_bytes=4294967296"):
            reader.check_output([huge])


@pytest.fixture
def state_dict():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    return {
        "first": 1,
        "a": weight,
        "second": "two",
        "b": weight,
        "c": torch.arange(9),
        "third": [3],
        "last": torch.tensor(True),
        "end": None,
    }


def test_state_dicts_keep_their_values_in_place(state_dict):
    frame = dcompress.save(state_dict, recipe="lossless")
    with open_frame(frame) as reader:
        place = reader.directory.tensors["a"].chunks[0].offset
        extra = reader.directory.sections[-1].offset
    loaded, damages = dcompress.salvage(frame)
    assert (list(loaded), damages) == (list(state_dict), [])
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    loaded, damages = dcompress.salvage(flipped(frame, 8 * place))
    assert list(loaded) == ["first", "second", "c", "third", "last", "end"]
    assert [damage.tensor for damage in damages] == ["a", "b"]
    assert torch.equal(loaded["c"], state_dict["c"])
    loaded, (damage,) = dcompress.salvage(flipped(frame, 8 * extra))
    assert list(loaded) == ["a", "b", "c", "last"]
    assert (damage.tensor, damage.rule) == (None, "SEC-01")
    assert "plain values and module versions" in str(damage)


# The command.


def load_npz(path):
    """Load all arrays; a file that stays open would be a warning, some day, in another test."""
    with np.load(path) as stored:
        return dict(stored)


def test_the_command_writes_what_is_sound(dcz, folder, monkeypatch):
    monkeypatch.chdir(folder)
    dcz("decode", "lenet.dcz", "-o", "whole.npz")
    whole = load_npz("whole.npz")
    with open_frame("lenet.dcz") as reader:
        places = {name: r.chunks[0].offset + 3 for name, r in reader.directory.tensors.items()}
    sound = (folder / "lenet.dcz").read_bytes()
    for name, place in places.items():
        (folder / "bad.dcz").write_bytes(flipped(sound, 8 * place))
        for suffix in ("safetensors", "pt", "npz"):
            out = folder / f"rest.{suffix}"
            result = dcz("decode", "bad.dcz", "--salvage", "-o", out, "-f", code=3)
            assert result.stdout.startswith(f"{out}: 5 tensors, ")
            first, second, *notes = result.stderr.splitlines()
            assert all(note.startswith("dcz: note: ") for note in notes)
            assert first.startswith("dcz: bad.dcz: chunk does not match its checksum (tensor ")
            assert f"'{name}'" in first
            assert "rule CHK-01)" in first
            assert second == "dcz: bad.dcz: 1 of 6 tensors lost"
        for got in (load_file("rest.safetensors"), torch.load("rest.pt"), load_npz("rest.npz")):
            assert set(got) == set(whole) - {name}
            assert all(np.asarray(got[one]).tobytes() == whole[one].tobytes() for one in got)


def test_without_salvage_a_damaged_file_leaves_no_output(fails, folder):
    data = (folder / "lenet.dcz").read_bytes()
    (folder / "bad.dcz").write_bytes(flipped(data, 8 * len(data) // 2))
    fails("decode", folder / "bad.dcz", "-o", folder / "out.npz", code=3, says="rule CHK-01")
    assert not (folder / "out.npz").exists()


def test_a_sound_file_is_decoded_as_ever(dcz, folder):
    plain = dcz("decode", folder / "lenet.dcz", "-o", folder / "out.npz")
    again = dcz("decode", folder / "lenet.dcz", "-o", folder / "out.npz", "-f", "--salvage")
    assert (again.stdout, again.stderr) == (plain.stdout, plain.stderr)


def test_a_file_that_is_cut_off(dcz, folder):
    with open_frame(folder / "lenet.dcz") as reader:
        records = reader.directory.tensors
    end = records["fc2.weight"].chunks[0].offset + 1
    (folder / "cut.dcz").write_bytes((folder / "lenet.dcz").read_bytes()[:end])
    for args in (("verify",), ("decode", "--salvage", "-o", folder / "out.safetensors")):
        result = dcz(args[0], folder / "cut.dcz", *args[1:], code=3)
        lines = result.stderr.splitlines()
        assert f"the file is cut off: {end} of " in lines[0]
        for name in ("fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"):
            assert sum(f"ends before its last chunk does (tensor '{name}'" in line for line in lines) == 1
    assert set(load_file(folder / "out.safetensors")) == {"fc1.weight", "fc1.bias"}
    assert lines[-1].endswith("4 of 6 tensors lost")


def test_patterns_select_what_is_salvaged(dcz, folder):
    with open_frame(folder / "lenet.dcz") as reader:
        place = reader.directory.tensors["fc1.bias"].chunks[0].offset
    (folder / "bad.dcz").write_bytes(flipped((folder / "lenet.dcz").read_bytes(), 8 * place))
    salvage = ("decode", folder / "bad.dcz", "--salvage", "-f", "-o", folder / "out.npz")
    assert "lost" not in dcz(*salvage, "--tensor", "fc2*").stderr
    assert "bad.dcz: 1 of 2 tensors lost\n" in dcz(*salvage, "--tensor", "fc1*", code=3).stderr
    (folder / "out.npz").unlink()
    result = dcz(*salvage, "--tensor", "fc1.bias", code=3)
    assert result.stdout == ""
    assert result.stderr.endswith("1 of 1 tensors lost: nothing to salvage, nothing written\n")
    assert not (folder / "out.npz").exists()


def test_salvage_from_stdin_to_stdout(dcz, folder):
    data = (folder / "lenet.dcz").read_bytes()
    done = dcz("decode", "-", "--salvage", "-o", "-", code=3, stdin=data + b"x")
    assert len(done.stdout_bytes) > 1_000_000
    assert "1 bytes follow the end" in done.stderr


def test_without_a_directory_the_message_says_so(fails, folder):
    data = (folder / "lenet.dcz").read_bytes()
    for bad in (flipped(data, 8 * 40), data[:60]):
        (folder / "bad.dcz").write_bytes(bad)
        for command in (("verify",), ("decode", "--salvage", "-o", folder / "o.npz")):
            fails(
                command[0], folder / "bad.dcz", *command[1:], code=3, says="without a sound directory nothing"
            )
    shutil.copy(folder / "tiny.safetensors", folder / "bad.dcz")
    fails("decode", folder / "bad.dcz", "--salvage", "-o", folder / "o.npz", code=3, says="safetensors file")


def test_verify_lists_aliases_of_damaged_tensors(dcz, tmp_path):
    (tmp_path / "bad.dcz").write_bytes(flipped(FRAME, 8 * RECORDS["b.labels"].chunks[0].offset))
    lines = dcz("verify", tmp_path / "bad.dcz", code=3).stderr.splitlines()
    assert ["'b.labels'" in lines[0], "'tied'" in lines[1]] == [True, True]
    assert any("damaged: 2 of 10 tensors" in line for line in lines)
