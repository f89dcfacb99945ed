from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcompress.coding.range_coder import SideWriter, fold_sign
from dcompress.coding.symbols import N_SYMBOLS
from dcompress.coding.table_set import ABSENT, CANONICAL, MAX_LENGTH, TableSet, frequencies_of
from dcompress.errors import CorruptError
from dcompress.kernels.reference_context import FLIP
from tests.checks import error_of, raises_rule
from tests.contexts import random_table_set
from tests.strategies import seeds


def lengths_of(*lengths):
    row = np.full(N_SYMBOLS, ABSENT, np.uint8)
    row[: len(lengths)] = lengths
    return row


def table_set_bytes(*, precision=0, quantisers=0, classes=0, tables=((0, 0, (0,)),), choice=(0,) * 25):
    """Write a table set field by field: tables are (parent, change of the largest bucket, steps)."""
    writer = SideWriter()
    for value in (precision, quantisers, classes, len(tables) - 1):
        writer.number(8, value)
    for parent, change, steps in tables:
        writer.number(9, parent)
        writer.number(10, fold_sign(change))
        last = 0
        for step in steps:
            contexts = 2208 + 16 * min(last, 2)
            writer.unary(contexts, abs(step), 15)
            if step:
                writer.bit(contexts + 15, int(step < 0))
            last = abs(step)
    for place, step in enumerate(choice):
        writer.unary(2272 if place % (classes + 1) == 0 else 2256, fold_sign(step), 16)
    return writer.finish()


@settings(max_examples=60)
@given(
    seeds,
    st.integers(0, 43),
    st.sampled_from([1, 2, 9, 127]),
    st.sampled_from([1, 2, 40, 64]),
    st.integers(1, 2),
    st.integers(10, 12),
)
def test_a_set_is_read_as_it_was_written(seed, largest, n_tables, n_classes, n_quantisers, precision):
    rng = np.random.default_rng(seed)
    tables = random_table_set(rng, largest, n_tables, n_classes, n_quantisers, precision)
    data = tables.to_bytes()
    again = TableSet.from_bytes(data)
    assert again.precision == precision
    np.testing.assert_array_equal(again.lengths, tables.lengths)
    np.testing.assert_array_equal(again.choice, tables.choice)
    assert again.to_bytes() == data
    assert (again.frequencies.sum(axis=1) == 1 << precision).all()
    np.testing.assert_array_equal(again.frequencies > 0, tables.lengths != ABSENT)


@settings(max_examples=300)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_table_set_or_corrupt(data):
    error = error_of(TableSet.from_bytes, data)
    assert error is None or (type(error) is CorruptError and error.rule)


def test_no_bytes_are_a_table_of_one_symbol():
    tables = TableSet.from_bytes(b"")
    assert (tables.precision, tables.n_classes, tables.n_quantisers) == (10, 1, 1)
    assert tables.frequencies.tolist() == [[1024] + [0] * (N_SYMBOLS - 1)]


def test_frequencies_of_lengths():
    # 0, 1 and 2 bits are 4/7, 2/7 and 1/7; what rounding leaves goes to the most frequent one.
    assert frequencies_of(lengths_of(0, 4, 8), 10)[:4].tolist() == [586, 292, 146, 0]
    assert frequencies_of(lengths_of(4, 4, MAX_LENGTH), 12)[:3].tolist() == [2048, 2047, 1]
    assert frequencies_of(lengths_of(5, 5, 5), 12)[:3].tolist() == [1366, 1365, 1365]
    assert frequencies_of(lengths_of(63), 11)[0] == 2048


def test_a_table_needs_room_for_its_rare_symbols():
    rare = lengths_of(*[0] * 24, *[MAX_LENGTH] * 63)
    assert frequencies_of(rare, 12).sum() == 4096
    with raises_rule(CorruptError, "SET-03"):
        frequencies_of(rare, 10)
    tables = TableSet(12, rare[None], np.zeros((1, len(CANONICAL), 1), np.uint8)).to_bytes()
    assert TableSet.from_bytes(tables).precision == 12
    steps = [-24, 0, 0] + [0] * 21 + [63, 63] + [0] * 61
    with raises_rule(CorruptError, "SET-03"):
        TableSet.from_bytes(table_set_bytes(tables=((0, 43, [-24, -24, -24, *steps[3:]]),)))


def test_slots_give_symbol_frequency_and_place():
    tables = random_table_set(np.random.default_rng(0), 3, 2, 1, 1, 10)
    slots = tables.slots.reshape(2, 1024)
    for table in range(2):
        at = 0
        for symbol, frequency in enumerate(tables.frequencies[table]):
            part = slots[table, at : at + frequency]
            np.testing.assert_array_equal(part, symbol << 25 | frequency << 12 | np.arange(frequency))
            at += frequency


def test_contexts_are_mirrored_and_classes_held_in_range():
    tables = random_table_set(np.random.default_rng(0), 3, 9, 4, 2, 10)
    contexts = tables.contexts(-3, 9).reshape(2, 13, 8, 8)
    assert len(CANONICAL) == 25
    for place, (left, far) in enumerate(CANONICAL):
        for total in range(-3, 10):
            table = tables.choice[:, place, min(max(total, 0), 3)]
            np.testing.assert_array_equal(contexts[:, total + 3, 3 + left, 3 + far], table)
            if left or far:
                np.testing.assert_array_equal(contexts[:, total + 3, 3 - left, 3 - far], table | FLIP)


def test_sizes_within_their_limits():
    assert TableSet.from_bytes(table_set_bytes(precision=2, quantisers=1, choice=(0,) * 50)).n_quantisers == 2
    many = table_set_bytes(classes=63, tables=((0, 0, (0,)),) * 127, choice=(0,) * 25 * 64)
    assert TableSet.from_bytes(many).lengths.shape[0] == 127
    for wrong in ({"precision": 3}, {"quantisers": 2}, {"classes": 64}, {"tables": ((0, 0, (0,)),) * 128}):
        with raises_rule(CorruptError, "TAB-01"):
            TableSet.from_bytes(table_set_bytes(**wrong))


def test_a_parent_stands_before_its_child():
    assert TableSet.from_bytes(table_set_bytes(tables=((0, 0, (3,)), (1, 0, (0,))))).lengths[1, 0] == 27
    with raises_rule(CorruptError, "TAB-01"):
        TableSet.from_bytes(table_set_bytes(tables=((0, 0, (0,)), (2, 0, (0,)))))


@pytest.mark.parametrize("change", [-1, 44])
def test_buckets_that_do_not_exist(change):
    with raises_rule(CorruptError, "SET-01"):
        TableSet.from_bytes(table_set_bytes(tables=((0, change, (0,) * 89),)))


@pytest.mark.parametrize(("step", "good"), [(-24, True), (-25, False), (39, True), (40, False)])
def test_lengths_of_0_to_63(step, good):
    data = table_set_bytes(tables=((0, 0, (step,)),))
    if good:
        assert TableSet.from_bytes(data).lengths[0, 0] == 24 + step
    else:
        with raises_rule(CorruptError, "SET-01"):
            TableSet.from_bytes(data)


def test_a_child_longer_than_its_parent_goes_on_by_itself():
    lengths = TableSet.from_bytes(
        table_set_bytes(tables=((0, 1, (0, 1, 2)), (1, 1, (1, 0, 0, 5, 0)), (1, -2, (7,))))
    ).lengths
    assert lengths[:, :6].tolist() == [
        [24, 25, 26, ABSENT, ABSENT, ABSENT],
        [25, 25, 26, 30, 26, ABSENT],
        [32, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT],
    ]


@pytest.mark.parametrize("choice", [(1,), (-1,), (0, 0, 1)])
def test_tables_that_do_not_exist(choice):
    with raises_rule(CorruptError, "SET-02"):
        TableSet.from_bytes(table_set_bytes(choice=choice + (0,) * (25 - len(choice))))


def test_nothing_follows():
    with raises_rule(CorruptError, "TAB-02"):
        TableSet.from_bytes(table_set_bytes() + b"\x00")
    with raises_rule(CorruptError, "TAB-02"):
        TableSet.from_bytes(table_set_bytes(precision=2) + b"\x01" * 9)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"tables": ((0, 0, (63,)),)}, "SET-01"),
        ({"tables": ((0, 0, (64,)),)}, "TAB-01"),
        ({"tables": ((0, 0, (10**5,)),)}, "TAB-01"),
        ({"choice": (127,)}, "SET-02"),
        ({"choice": (128,)}, "TAB-01"),
        ({"choice": (10**5,)}, "TAB-01"),
    ],
)
def test_very_long_steps_end_at_their_limit(fields, rule):
    with raises_rule(CorruptError, rule):
        TableSet.from_bytes(table_set_bytes(**fields))
