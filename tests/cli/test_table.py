from __future__ import annotations

import pytest

from dcompress.cli.options import _byte_size
from dcompress.cli.table import Column, layout_table, printable, shorten

COLUMNS = [
    Column("tensor", ["encoder.layers.0.attention.query.weight", "b"], right=False),
    Column("shape", ["4096x4096", "4096"], drop=2),
    Column("bytes", ["1,234,567", "12"]),
    Column("coder", ["zero_run", "raw"], right=False, drop=1),
]


def test_piped_tables_are_whole():
    lines = layout_table(COLUMNS, None)
    assert lines[1] == "encoder.layers.0.attention.query.weight  4096x4096  1,234,567  zero_run"
    assert lines[2].split() == ["b", "4096", "12", "raw"]


@pytest.mark.parametrize("width", range(30, 100))
def test_tables_fit_a_terminal(width):
    lines = layout_table(COLUMNS, width)
    assert max(map(len, lines)) <= width
    assert "1,234,567" in lines[1]


def test_columns_go_before_names_become_too_short():
    assert "coder" in layout_table(COLUMNS, 52)[0]
    narrow = layout_table(COLUMNS, 48)
    assert "coder" not in narrow[0]
    assert narrow[1].startswith("encoder.lay...uery.weight  4096x4096")


def test_shorten():
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdefgh", 7) == "ab...gh"
    assert [len(shorten("abcdefgh", width)) for width in range(1, 8)] == [1, 2, 3, 4, 5, 5, 7]


def test_printable():
    assert printable("größe 重み") == "größe 重み"
    assert printable("a\nb\x1b[0m\u202e\udc80") == r"a\nb\x1b[0m\u202e\udc80"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("4k", 4096),
        ("4 KiB", 4096),
        ("1.5M", 3 << 19),
        ("4GB", 4 << 30),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text, size):
    assert _byte_size(None, None, text) == size
