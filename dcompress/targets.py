"""What a file shall come to: its size, or the quality of its weights. Standard library only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from dcompress.errors import RecipeError
from dcompress.settings import near

__all__ = ["TARGET_KINDS", "Target", "make_target", "parse_size"]

TARGET_KINDS = {  # by the name of the argument: what it is, in words
    "target_size": "bytes of the whole file",
    "target_ratio": "decoded bytes over bytes of the whole file",
    "target_bpw": "bits of the whole file per weight of matrices and kernels",
    "quality": "SQNR of all matrices and kernels together, in dB",
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@dataclass(frozen=True)
class Target:
    """One figure of the file that is to be met: by at most 1 %, and never on the wrong side.

    Attributes
    ----------
    kind : str
        One of ``TARGET_KINDS``.
    value : float
        Above 0.
    """

    kind: str
    value: float

    def __str__(self) -> str:
        if self.kind == "target_size":
            return f"{self.value:,.0f} bytes"
        number = f"{self.value:.5g}"
        if self.kind == "target_ratio":
            return f"ratio {number}"
        return (
            f"{number} dB" if self.kind == "quality" else f"{number} bits per weight of matrices and kernels"
        )


def parse_size(text: str) -> int:
    """Return the bytes of a size: kB, MB and GB are powers of 1,000; KiB, MiB and GiB of 1,024.

    Raises
    ------
    RecipeError
        It is no size.

    Examples
    --------
    >>> parse_size("500kB"), parse_size("1.5 MiB"), parse_size("300000")
    (500000, 1572864, 300000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmg]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise RecipeError(f"{text!r} is no size: write it like 500kB, 1.5MiB or 300000")
    unit = _UNITS[match[2]]
    return int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)


def make_target(**asked: Any) -> Target | None:
    """Return the one target that is not None, or None.

    Parameters
    ----------
    **asked
        By the names in ``TARGET_KINDS``; a size may be text, see `parse_size`.

    Raises
    ------
    RecipeError
        There are two, or one is unknown or out of range.
    """
    given = {kind: value for kind, value in asked.items() if value is not None}
    for kind in given:
        if kind not in TARGET_KINDS:
            raise RecipeError(f"unknown target {kind!r}{near(kind, TARGET_KINDS)}")
    if len(given) > 1:
        raise RecipeError(f"give only one of {', '.join(given)}")
    for kind, value in given.items():
        if kind == "target_size" and isinstance(value, str):
            value = parse_size(value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise RecipeError(f"{kind} must be a number above 0 ({TARGET_KINDS[kind]}), not {value!r}")
        return Target(kind, value)
    return None
