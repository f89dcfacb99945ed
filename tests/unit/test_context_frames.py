"""Frames with context-coded tensors: what of them is read, and in what order."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

import dcompress.numpy as dnp
from dcompress.coding import Raw, TableSet
from dcompress.coding.classes import Classes
from dcompress.constants import CODER_CONTEXT, DTYPE_BY_NAME
from dcompress.decode import open_frame
from dcompress.errors import ChecksumError, CorruptError, LimitError
from dcompress.limits import DecodeLimits
from dcompress.stages import TensorData
from tests.checks import (
    Entry,
    Frame,
    assert_same,
    coded,
    error_of,
    flipped,
    frame_of,
    raises_rule,
    read_everything,
)
from tests.contexts import random_context

F32 = DTYPE_BY_NAME["float32"]
NONE = np.zeros(1, np.int64)


def a_model(shift=2):
    """Return three tensors of two table sets, their frame, and the table sets."""
    rng = np.random.default_rng(0)
    parts = {
        "a": random_context(rng, F32, (30, 7, 2), 40, shift=shift, most_tables=3),
        "b": random_context(rng, F32, (50,), 9, has_zero=False, most_tables=3),
        "c": random_context(
            rng, DTYPE_BY_NAME["complex64"], (11, 3), 20, states=8, shift=shift, most_tables=3
        ),
    }
    numbers = {"a": 1, "b": 0, "c": 2}
    parts = {name: (t, replace(c, set_number=numbers[name])) for name, (t, c) in parts.items()}
    stored = {name: coded(t, c, shift if name != "b" else 0) for name, (t, c) in parts.items()}
    sets = [parts[name][1].tables.to_bytes() for name in ("b", "a", "c")]
    return {name: t for name, (t, _) in parts.items()}, frame_of(stored, table_sets=sets), sets


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shift", [0, 2, 3])
def test_whole_frames(kernel, threads, shift):
    tensors, frame, _ = a_model(shift)
    assert_same(read_everything(frame, threads), tensors)
    with open_frame(frame, threads=threads) as reader:
        for name in ("c", "a", "b", "a"):
            assert_same({name: reader.read_tensor(name)}, {name: tensors[name]})


@pytest.mark.parametrize("shift", [0, 2, 3])
def test_rows(kernel, shift):
    tensors, frame, _ = a_model(shift)
    with open_frame(frame) as reader:
        for name, tensor in tensors.items():
            rows = tensor.gather().words.reshape(tensor.shape[0], -1)
            n = len(rows)
            for start, stop in [(0, n), (0, 0), (0, 1), (n - 1, n), (3, 5), (n // 3, n // 2)]:
                part = reader.read_rows(name, start, stop)
                np.testing.assert_array_equal(part.words.reshape(-1, rows.shape[1]), rows[start:stop])


def test_slices(kernel):
    tensors, frame, _ = a_model()
    with dnp.safe_open(frame) as file:
        whole = dnp.array_from_data(tensors["a"].gather())
        for key in (slice(2, 9), slice(-3, None), (slice(5, 30), 3), 7):
            np.testing.assert_array_equal(file.get_slice("a")[key], whole[key])


@pytest.mark.parametrize("shift", [0, 2])
def test_labels_and_codebooks(kernel, shift):
    tensors, frame, _ = a_model(shift)
    with open_frame(frame) as reader:
        for name, tensor in tensors.items():
            got = reader.read_shared(name)
            np.testing.assert_array_equal(got.codebook, tensor.codebook)
            np.testing.assert_array_equal(got.labels, tensor.labels)
            assert got.labels.dtype == np.uint16
            assert_same({name: got.gather()}, {name: tensor})


def test_the_directory_says_what_it_can():
    tensors, frame, sets = a_model()
    with open_frame(frame) as reader:
        records = reader.directory.tensors
        assert [one.n_bytes for one in reader.directory.table_sets] == list(map(len, sets))
        assert {record.coder for record in records.values()} == {CODER_CONTEXT}
        assert [record.n_labels for record in records.values()] == [t.n_labels for t in tensors.values()]


def test_a_damaged_table_set_concerns_its_tensors_only():
    tensors, frame, sets = a_model()
    with open_frame(frame) as reader:
        at = reader.directory.table_sets[1].offset
    bad = flipped(frame, 8 * at + 3)
    with open_frame(bad) as reader:
        for name in ("b", "c"):
            assert_same({name: reader.read_tensor(name)}, {name: tensors[name]})
        with raises_rule(ChecksumError, "CHK-01"):
            reader.read_tensor("a")
        assert error_of(reader.read_tensor, "a").offset == at
        with pytest.raises(ChecksumError, match="table set 1"):
            reader.verify_sections()
        assert error_of(reader.verify_sections).offset == at
    assert len(sets[1]) > 3


def test_table_sets_that_nobody_uses_are_verified():
    frame = frame_of(
        {"w": coded(TensorData(F32, (1,), np.ones(1, np.uint32)), Raw())}, table_sets=[b"\xff" * 9]
    )
    with open_frame(frame) as reader:
        reader.read_all()
        with pytest.raises(CorruptError):
            reader.verify_sections()


def test_each_table_set_is_read_once(monkeypatch):
    # Otherwise many small tensors that take turns would make a large table set cost much time.
    tensors, frame, _ = a_model()
    read = TableSet.from_bytes
    seen = []
    monkeypatch.setattr(TableSet, "from_bytes", lambda data: seen.append(data) or read(data))
    with open_frame(frame) as reader:
        for _ in range(3):
            for name in tensors:
                reader.read_tensor(name)
    assert len(seen) == 3


def test_more_tensors_than_are_started_at_once():
    rng = np.random.default_rng(1)
    tensor, coder = random_context(rng, F32, (6, 5), 9, most_tables=2)
    tensors = {f"t{number}": tensor for number in range(150)}
    one = coded(tensor, coder)
    frame = frame_of(dict.fromkeys(tensors, one), table_sets=[coder.tables.to_bytes()])
    for threads in (1, 3):
        assert_same(read_everything(frame, threads), tensors)


def test_wrong_kinds_of_table_sets():
    tensor, coder = random_context(np.random.default_rng(1), F32, (6, 5), 9, most_tables=2)
    one = {"w": coded(tensor, coder)}
    with raises_rule(CorruptError, "CTX-01"):
        read_everything(frame_of(one))
    other = {"w": coded(tensor, replace(coder, set_number=2))}
    with raises_rule(CorruptError, "TAB-01"):
        read_everything(frame_of(other, table_sets=[coder.tables.to_bytes()] * 2))
    with raises_rule(CorruptError, "TAB-02"):
        read_everything(frame_of(one, table_sets=[coder.tables.to_bytes() + b"\x07" * 9]))


# Limits.


def bomb(shape, tables):
    """Return a frame of few bytes whose tensor has the shape; all words are 0."""
    entry = Entry(
        shape=shape,
        dtype=2,
        coder=CODER_CONTEXT,
        n_labels=1,
        chunks=(bytes([len(tables)]) + tables + bytes(40),),
    )
    return Frame([entry], table_sets=[b""]).to_bytes()


def test_sizes_are_checked_before_anything_is_done():
    started = time.perf_counter()
    with raises_rule(LimitError, "LIM-05"):
        read_everything(bomb((1 << 34, 1), b""))
    # Within the limit of 4 GiB, but with more rows, or longer ones, than so few bytes are worth.
    tables = b"\x00\x40"  # no groups, a zero
    with open_frame(bomb((1 << 31, 1), tables)) as reader, pytest.raises(CorruptError):
        reader.read_rows("w", 0, 1)
    with open_frame(bomb((1, 1 << 31), tables)) as reader, pytest.raises(CorruptError):
        reader.read_rows("w", 0, 1)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(("n_rows", "rule"), [(150, None), (3000, "CTX-08")])
def test_few_bytes_have_few_rows(kernel, n_rows, rule):
    tensor, coder = random_context(np.random.default_rng(0), F32, (n_rows, 1), 1)
    coder = replace(coder, classes=Classes(np.full(n_rows, 3), NONE, NONE), tables=TableSet.from_bytes(b""))
    frame = frame_of({"w": coded(tensor, coder)}, table_sets=[b""])
    if rule is None:
        assert_same(read_everything(frame), {"w": tensor})
        return
    with raises_rule(CorruptError, rule):
        read_everything(frame)


def test_output_is_limited():
    _, frame, _ = a_model()
    with open_frame(frame, limits=DecodeLimits(max_output_bytes=1000)) as reader:
        with raises_rule(LimitError, "LIM-05"):
            reader.read_tensor("a")
        reader.read_tensor("b")
