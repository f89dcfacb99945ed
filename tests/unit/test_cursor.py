from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.cursor import Cursor, write_varint
from dcompress.errors import CorruptError, TruncatedError
from tests.checks import raises_rule, varint


def written(value):
    out = bytearray()
    write_varint(out, value)
    return bytes(out)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        ((1 << 14) - 1, "ff7f"),
        (1 << 14, "808001"),
        ((1 << 63) - 1, "ffffffffffffffff7f"),
        (1 << 63, "80808080808080808001"),
        ((1 << 64) - 1, "ffffffffffffffffff01"),
    ],
)
def test_varints_byte_by_byte(value, data):
    assert written(value).hex() == data
    assert Cursor(bytes.fromhex(data)).varint() == value


@given(st.integers(0, 2**64 - 1))
def test_varints_round_trip(value):
    cursor = Cursor(written(value) + b"rest")
    assert written(value) == varint(value)
    assert cursor.varint() == value
    assert cursor.remaining == 4


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_varints_out_of_range_are_not_written(value):
    with pytest.raises(ValueError, match="out of range"):
        written(value)


@given(st.binary(min_size=1, max_size=12))
def test_every_varint_has_one_encoding(data):
    cursor = Cursor(data)
    try:
        value = cursor.varint()
    except (CorruptError, TruncatedError):
        return
    assert written(value) == data[: cursor.offset]


@pytest.mark.parametrize("data", ["8000", "ff00", "808000", "80808080808080808000"])
def test_varints_longer_than_needed_are_refused(data):
    with raises_rule(CorruptError, "NUM-01"):
        Cursor(bytes.fromhex(data)).varint()


@pytest.mark.parametrize("data", ["80" * 9 + "02", "ff" * 9 + "7f", "80" * 10, "ff" * 11])
def test_varints_beyond_64_bits_are_refused(data):
    with raises_rule(CorruptError, "NUM-01"):
        Cursor(bytes.fromhex(data)).varint()


@pytest.mark.parametrize("data", ["", "80", "ffff"])
def test_cut_off_varints_are_truncated(data):
    with raises_rule(TruncatedError, "FRM-01"):
        Cursor(bytes.fromhex(data)).varint()


def test_varint_limit_is_inclusive():
    assert Cursor(written(1000)).varint(1000) == 1000
    with raises_rule(CorruptError, "NUM-02"):
        Cursor(written(1001)).varint(1000)


def test_errors_tell_where_the_number_starts():
    cursor = Cursor(b"\x01\x80\x00", base=500)
    cursor.u8()
    with pytest.raises(CorruptError) as caught:
        cursor.varint()
    assert caught.value.offset == 501


def test_fixed_numbers_are_little_endian():
    cursor = Cursor(bytes.fromhex("ff78563412"), base=7)
    assert cursor.u8() == 0xFF
    assert cursor.offset == 8
    assert cursor.u32() == 0x12345678
    assert (cursor.offset, cursor.remaining) == (12, 0)


@pytest.mark.parametrize("read", [lambda c: c.u8(), lambda c: c.u32(), lambda c: c.take(4)])
def test_nothing_is_read_beyond_the_end(read):
    cursor = Cursor(b"abc", base=10)
    cursor.take(3)
    with pytest.raises(TruncatedError) as caught:
        read(cursor)
    assert (caught.value.rule, caught.value.offset) == ("FRM-01", 13)
    assert cursor.remaining == 0


def test_a_failed_take_reads_nothing():
    cursor = Cursor(b"abc")
    with raises_rule(TruncatedError, "FRM-01"):
        cursor.take(1 << 70)
    assert bytes(cursor.take(3)) == b"abc"


def test_taken_bytes_are_not_copied():
    data = bytearray(b"abcdef")
    taken = Cursor(memoryview(data)).take(3)
    data[0] = 0x7A
    assert bytes(taken) == b"zbc"


def test_finish_wants_everything_read():
    cursor = Cursor(b"ab")
    cursor.u8()
    with raises_rule(CorruptError, "LBL-01"):
        cursor.finish("LBL-01")
    cursor.u8()
    cursor.finish("LBL-01")
