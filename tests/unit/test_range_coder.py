from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcompress.coding.range_coder import (
    CLASS_CONTEXTS,
    SideReader,
    SideWriter,
    fold_sign,
    unfold_sign,
)
from dcompress.errors import CorruptError
from dcompress.kernels import reference
from dcompress.kernels.side import N_CONTEXTS
from tests.checks import error_of, raises_rule

jit = pytest.importorskip("dcompress.kernels.jit")
KERNELS = (reference, jit)

numbers = st.integers(0, 2**64 - 1) | st.integers(0, 20) | st.integers(0, 64).map(lambda n: (1 << n) - 1)
operations = st.lists(
    st.tuples(st.just("bit"), st.integers(0, 5), st.integers(0, 1))
    | st.integers(0, 64).flatmap(
        lambda n: st.tuples(st.just("raw"), st.just(n), st.integers(0, (1 << n) - 1))
    )
    | st.tuples(st.just("number"), st.integers(0, 3), numbers)
    | st.tuples(st.just("unary"), st.integers(CLASS_CONTEXTS, N_CONTEXTS - 16), st.integers(0, 90)),
    max_size=60,
)


def written(steps):
    """Write with both kernels: they write the same bytes."""
    results = []
    for kernel in KERNELS:
        state = kernel.start_writer()
        for kind, context, value in steps:
            if kind == "raw":
                state = kernel.write_raw(state, np.uint64(value), context)
            elif kind == "unary":
                state = kernel.write_unary(state, context, value, 16)
            else:
                state = getattr(kernel, f"write_{kind}")(state, context, np.uint64(value))
        results.append(kernel.written(state))
    assert results[0] == results[-1]
    return results[0]


class Reader:
    """Reads step by step with the kernels, bits and unary numbers too."""

    def __init__(self, data, kernel):
        self.data = np.frombuffer(data, np.uint8)
        self.kernel, self.state = kernel, kernel.start_side(self.data)

    def step(self, kind, context):
        arguments = {"unary": (16, 90)}.get(kind, ())
        return int(getattr(self.kernel, f"read_{kind}")(self.data, self.state, context, *arguments))

    def n_read(self):
        return self.kernel.bytes_used(self.state)


def read(steps, data):
    """Read with both kernels: they agree on every value, and on how far they read."""
    readers = [Reader(data, kernel) for kernel in KERNELS]
    values = [[reader.step(kind, context) for kind, context, _ in steps] for reader in readers]
    assert values[0] == values[-1]
    assert readers[0].n_read() == readers[-1].n_read()
    return values[0], readers[0]


def values_of(steps):
    return [value for _, _, value in steps]


@given(operations)
def test_what_was_written_is_read(steps):
    data = written(steps)
    values, reader = read(steps, data)
    assert values == values_of(steps)
    assert reader.n_read() >= len(data)


@given(operations)
def test_writing_is_deterministic_and_leaves_no_zero_at_the_end(steps):
    data = written(steps)
    assert data == written(steps)
    assert not data.endswith(b"\x00")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.just("bit"), st.just(0), st.integers(0, 1)), max_size=9))
def test_no_shorter_string_decodes_the_same(steps):
    data = written(steps)
    assert len(data) <= 2
    for length in range(len(data)):
        for shorter in itertools.product(range(256), repeat=length):
            assert read(steps, bytes(shorter))[0] != values_of(steps)


def test_nothing_takes_no_bytes():
    assert written([]) == b""
    SideReader(b"").finish()


@given(st.lists(numbers, max_size=20))
def test_a_zero_at_the_end_is_refused(values):
    steps = [("number", 3, value) for value in values]
    for extra in (b"", b"\x00"):
        reader = SideReader(written(steps) + extra)
        assert [reader.number(3, 2**64 - 1) for _ in values] == values
        error = error_of(reader.finish)
        assert (error.rule if error else None) == ("TAB-02" if extra else None)


@given(operations, st.binary(min_size=1, max_size=3))
def test_bytes_that_are_never_read_are_refused(steps, extra):
    # Every step takes less than ten bytes, the start four.
    data = written(steps).ljust(4 + 10 * len(steps) + 1, b"\x01") + extra
    reader = SideReader(data)
    for _ in steps:
        reader.raw(8)
    with raises_rule(CorruptError, "TAB-02"):
        reader.finish()


@pytest.mark.parametrize("value", [0, 1, 2, 3, 255, 256, 2**32, 2**63, 2**64 - 1])
def test_numbers_keep_to_their_limit(value):
    data = written([("number", 5, value)])
    assert SideReader(data).number(5, value) == value
    if value:
        with raises_rule(CorruptError, "TAB-01"):
            SideReader(data).number(5, value - 1)


@given(st.binary(max_size=60), operations)
def test_any_bytes_can_be_read(data, steps):
    values, reader = read(steps, data)
    for (kind, context, _), value in zip(steps, values, strict=True):
        assert 0 <= value < {"bit": 2, "raw": 1 << context, "unary": 92}.get(kind, 1 << 64)
    assert reader.n_read() >= 4


def test_bits_that_repeat_become_cheap():
    steps = [("bit", 7, 0)] * 4000
    # An ideal coder that never holds a bit for impossible (chance of 32 in 4,096) takes 5.7 bytes.
    assert len(written(steps)) < 4000 * 0.0114 / 8 + 8


def test_a_carry_runs_through_all_bytes():
    # Ones push the low end up to the brink; every split of the interval may carry.
    for n in range(1, 200):
        steps = [("bit", 0, 1)] * n + [("raw", 16, 0xFFFF), ("bit", 1, 1)]
        assert read(steps, written(steps))[0] == values_of(steps)


def test_raw_bits_cost_what_they_are():
    steps = [("raw", 64, 0x0123456789ABCDEF)] * 100
    assert 800 <= len(written(steps)) <= 801


# Unary numbers and classes.


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("limit", [0, 1, 15, 16, 63])
def test_unary_numbers_stop_beyond_their_limit(limit, kernel):
    for value in (limit, limit + 1, limit + 10**4):
        data = np.frombuffer(written([("unary", CLASS_CONTEXTS, value)]), np.uint8)
        found = kernel.read_unary(data, kernel.start_side(data), CLASS_CONTEXTS, 16, limit)
        assert found == min(value, limit + 1)


@given(st.lists(st.integers(-31, 31) | st.just(-128), max_size=200))
def test_classes_come_back(classes):
    writer = SideWriter()
    last = 0
    for number in classes:
        folded = 0 if number == -128 else 1 + fold_sign(number)
        writer.unary(CLASS_CONTEXTS + 64 + 16 * last, folded, 16)
        last = min(folded, 3)
    reader = SideReader(writer.finish())
    assert reader.classes(CLASS_CONTEXTS + 64, len(classes)).tolist() == classes
    reader.finish()


def test_classes_beyond_31():
    writer = SideWriter()
    writer.unary(CLASS_CONTEXTS, 64, 16)
    with raises_rule(CorruptError, "TAB-01"):
        SideReader(writer.finish()).classes(CLASS_CONTEXTS, 1)


def test_signs_are_folded():
    assert [unfold_sign(number) for number in range(5)] == [0, -1, 1, -2, 2]
    assert [fold_sign(number) for number in (0, -1, 1, -2, 2)] == list(range(5))
