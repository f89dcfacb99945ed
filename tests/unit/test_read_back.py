"""What cannot be read is not written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import dcompress.numpy as face
from dcompress.checkpoint import checkpoint_from_state_dict
from dcompress.encode import encode_checkpoint
from dcompress.errors import EncodeError
from dcompress.packing import encode_group
from dcompress.read_back import _Parts, read_back
from dcompress.recipe import Recipe


def some_arrays():
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((64, 40)).astype(np.float32),
        "b": rng.standard_normal((30, 30)).astype(np.float32),
        "c": np.arange(7),
        "empty": np.zeros((0, 3)),
    }


@pytest.fixture
def frame():
    state = {name: torch.from_numpy(one) for name, one in some_arrays().items()}
    return encode_checkpoint(checkpoint_from_state_dict(state, {"key": "value"}), Recipe(step=0.1))


def test_parts_are_read_as_if_they_were_one(frame):
    whole, parts = frame.to_bytes(), _Parts(frame)
    assert parts.size() == len(whole)
    rng = np.random.default_rng(1)
    for _ in range(500):
        offset, n_bytes = int(rng.integers(len(whole) + 5)), int(rng.integers(600))
        assert bytes(parts.read(offset, n_bytes)) == whole[offset : offset + n_bytes]


def test_a_sound_frame_passes(frame):
    read_back(frame)
    read_back(frame, threads=2)


def with_a_bug(*arguments):
    """Code tensors, but for the last byte of each."""
    coded, table_set = encode_group(*arguments)
    return [
        dataclasses.replace(one, chunks=(*one.chunks[:-1], one.chunks[-1][:-1] + b"?")) if one.chunks else one
        for one in coded
    ], table_set


def test_what_a_bug_has_spoilt_is_not_written(monkeypatch, tmp_path):
    path = tmp_path / "a.dcz"
    face.save_file(some_arrays(), path, recipe=Recipe(step=0.1))
    before = path.read_bytes()
    monkeypatch.setattr("dcompress.encode.encode_group", with_a_bug)
    with pytest.raises(EncodeError, match=r"cannot be read back .* bug of dcompress"):
        face.save_file(some_arrays(), path, recipe=Recipe(step=0.2))
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.dcz"]
