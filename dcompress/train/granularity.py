"""What is pruned as one unit. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dcompress.errors import RecipeError
from dcompress.settings import near

__all__ = ["Granularity"]

_WHOLE = ("element", "kernel", "filter", "channel")


@dataclass(frozen=True)
class Granularity:
    """What is pruned as one unit.

    Attributes
    ----------
    kind : {"element", "kernel", "filter", "channel", "block", "n:m"}
        Single weights; kernels of a convolution; slices of the first dimension; slices of the second
        dimension; blocks of a matrix; single weights, n of each m along the second dimension kept.
    size : pair of int
        Height and width of a block, or n and m.
    """

    kind: str
    size: tuple[int, int] = (1, 1)

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """Return the granularity that a word, ``"4x4"`` or ``"2:4"`` means.

        Raises
        ------
        RecipeError
            It means none, or an impossible one.
        """
        if text in _WHOLE:
            return cls(text)
        match = re.fullmatch(r"(\d+)([x:])(\d+)", text) if isinstance(text, str) else None
        if match is None:
            hint = near(str(text), _WHOLE) or "; write a block as '4x1', 2 of 4 kept as '2:4'"
            raise RecipeError(
                f"granularity must be one of {', '.join(_WHOLE)}, HxW or N:M, not {text!r}{hint}"
            )
        first, second = int(match[1]), int(match[3])
        if match[2] == "x":
            if first < 1 or second < 1:
                raise RecipeError(f"granularity {text!r}: a block has at least one row and one column")
            return cls("block", (first, second))
        if not 0 < first < second:
            raise RecipeError(f"granularity {text!r}: N:M keeps N of M weights, so 0 < N < M")
        return cls("n:m", (first, second))

    def __str__(self) -> str:
        join = {"block": "x", "n:m": ":"}.get(self.kind)
        return self.kind if join is None else f"{self.size[0]}{join}{self.size[1]}"
