from __future__ import annotations

import pytest

from dcompress.errors import RecipeError
from dcompress.targets import TARGET_KINDS, Target, make_target, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("300000", 300_000),
        ("500kB", 500_000),
        ("500 KB", 500_000),
        ("500k", 500_000),
        ("2MB", 2_000_000),
        ("1.5MiB", 1_572_864),
        ("1.5mib", 1_572_864),
        ("64Ki", 65_536),
        (".5GB", 500_000_000),
        (" 7 b ", 7),
    ],
)
def test_sizes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "kB", "-5kB", "5XB", "5 5", "1e5", "5i", "5iB", "nan", "0x10"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="is no size: write it like 500kB"):
        parse_size(text)


def test_one_target_or_none():
    assert make_target() is None
    assert make_target(quality=None, target_size=None) is None
    assert make_target(quality=25, target_size=None) == Target("quality", 25)
    assert make_target(target_size="20kB") == Target("target_size", 20_000)
    with pytest.raises(RecipeError, match="give only one of target_ratio, quality"):
        make_target(target_ratio=3, quality=25)
    with pytest.raises(RecipeError, match="unknown target 'target_sice'; did you mean 'target_size'"):
        make_target(target_sice=3)


@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, [3]])
def test_values_out_of_range_are_refused(kind, value):
    with pytest.raises(RecipeError, match=f"{kind} must be a number above 0"):
        make_target(**{kind: value})


def test_in_words():
    assert str(Target("target_size", 500_000)) == "500,000 bytes"
    assert str(Target("target_ratio", 12.0)) == "ratio 12"
    assert str(Target("target_bpw", 2.98234)) == "2.9823 bits per weight of matrices and kernels"
    assert str(Target("quality", 25.04692)) == "25.047 dB"
