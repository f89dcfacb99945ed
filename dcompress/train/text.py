"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align", "percent"]


def align(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of equal columns: the first to the left, the others to the right.

    Examples
    --------
    >>> align(["a", "bytes"], [["x", "12"], ["long", "3"]])
    ['a     bytes', 'x        12', 'long      3']
    """
    table = [heading, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(heading))]
    lines = []
    for row in table:
        cells = [
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def percent(fraction: float) -> str:
    """Return a fraction in percent.

    Examples
    --------
    >>> percent(0.0825)
    '8.2 %'
    """
    return f"{100 * fraction:.1f} %"
