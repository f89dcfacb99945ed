"""Plain text tables that fit a terminal. When piped, nothing is shortened and nothing dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Column", "fit_columns", "layout_table", "printable", "shorten"]

_GAP = 2
_MIN_NAME = 20


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    title : str
        Its heading.
    cells : sequence of str
        One a row, printable.
    right : bool
        Whether it is aligned to the right.
    drop : int
        Order in which columns are dropped where there is no room: 1 first; 0 never.
    """

    title: str
    cells: Sequence[str]
    right: bool = True
    drop: int = 0

    @property
    def width(self) -> int:
        """Width of the widest cell."""
        return max(len(text) for text in (self.title, *self.cells))


def printable(text: str) -> str:
    r"""Return text in which nothing can move the cursor, break the line or fail to print.

    Examples
    --------
    >>> printable("fc1\x1b[2J")
    'fc1\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def shorten(text: str, width: int) -> str:
    """Return text of at most ``width`` characters, the middle left out.

    Examples
    --------
    >>> shorten("encoder.layer.0.attention.weight", 16)
    'encode...weight'
    """
    if len(text) <= width:
        return text
    if width <= 3:
        return text[:width]
    kept = (width - 3) // 2
    return f"{text[:kept]}...{text[-kept:]}" if kept else text[:width]


def fit_columns(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Return the columns that fit; the first one is shortened, if it must be.

    Parameters
    ----------
    columns : sequence of Column
        The first one holds names.
    width : int or None
        Characters a line; None if there is no limit.
    """
    chosen = list(columns)
    if width is None:
        return chosen

    def room() -> int:
        return width - sum(column.width + _GAP for column in chosen[1:])

    needed = chosen[0].width
    while room() < min(needed, _MIN_NAME):
        droppable = [column for column in chosen if column.drop]
        if not droppable:
            break
        chosen.remove(min(droppable, key=lambda column: column.drop))
    names = chosen[0]
    if room() < needed:
        cut = max(room(), len(names.title))
        chosen[0] = Column(names.title, [shorten(cell, cut) for cell in names.cells], names.right)
    return chosen


def layout_table(columns: Sequence[Column], width: int | None) -> list[str]:
    """Return the lines of a table, the heading first.

    Examples
    --------
    >>> for line in layout_table([Column("a", ["x"], right=False), Column("bytes", ["12"])], None):
    ...     print(line)
    a  bytes
    x     12
    """
    chosen = fit_columns(columns, width)
    lines = []
    for cells in zip(*[(column.title, *column.cells) for column in chosen], strict=True):
        padded = [
            cell.rjust(column.width) if column.right else cell.ljust(column.width)
            for cell, column in zip(cells, chosen, strict=True)
        ]
        lines.append((" " * _GAP).join(padded).rstrip())
    return lines
