"""What each part of the encoder is worth: file sizes with one part left out, beside the whole.

    python tools/gains.py MODELS          the suite of tools/peers.py, at best effort
    python tools/gains.py MODELS --only L  sets whose title holds this text

Each row is a set of labels, each column the bytes of the file without that part, in percent above the
whole. A part that is worth less than 0.3 % on every set has no place in the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from peer_sets import suite_sets

from dcompress import choice, coding, encode, modelling, packing, views
from dcompress.coding.context import Classes, Neighbourhood
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint

Replacement = tuple[object, str, Any]

_NEVER = 1 << 30


def _nearest_only(tensor: Any, reach: int) -> Neighbourhood:
    """Return a neighbourhood without the second word."""
    return FULL_NEIGHBOURHOOD(tensor, min(1, reach))


def _no_neighbours(tensor: Any, reach: int) -> Neighbourhood:
    """Return a neighbourhood in which all words look alike."""
    del reach
    return FULL_NEIGHBOURHOOD(tensor, 0)


def _rows_alike(tensor: Any) -> Classes:
    """Return classes of columns and positions only."""
    classes = FULL_CLASSES(tensor)
    rows = np.where(classes.rows < 0, classes.rows, int(np.median(classes.rows)))
    return Classes(rows, classes.columns, classes.positions)


def _no_positions(tensor: Any) -> Classes:
    """Return classes of rows and columns only."""
    classes = FULL_CLASSES(tensor)
    return Classes(classes.rows, classes.columns, np.zeros(1, np.int64))


def _one_block(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a fit of `Labels` that knows no blocks of several labels."""

    def fit(*arguments: Any, **options: Any) -> Any:
        return [one for one in function(*arguments, **options) if one[0].block == 1]

    return fit


FULL_NEIGHBOURHOOD = views.neighbourhood_of
FULL_CLASSES = modelling.first_classes

PARTS: dict[str, tuple[Replacement, ...]] = {
    "context coder": ((packing, "_FIRST_EFFORT", _NEVER),),
    "columns": ((modelling, "_MIN_ROWS", _NEVER),),
    "positions": ((modelling, "first_classes", _no_positions),),
    "rows": ((modelling, "first_classes", _rows_alike), (packing, "_TRIES", (((0, 2),),) * 9)),
    "moved classes": ((packing, "_TRIES", (((0, 2),),) * 9),),
    "neighbours": ((views, "neighbourhood_of", _no_neighbours),),
    "second neighbour": ((views, "neighbourhood_of", _nearest_only),),
    "shared tables": ((encode, "GROUP_WORDS", 1),),
    "run coders": ((choice, "_choose_sparse", lambda *_: None),),
    "joint runs": ((choice, "MAX_ALPHABET", 0),),
    "blocks": ((coding.Labels, "fit", _one_block(coding.Labels.fit)),),
    "even codebooks": ((coding.base, "even_step", lambda *_: None),),
}


@contextmanager
def without(part: str) -> Iterator[None]:
    """Leave one part out."""
    with ExitStack() as stack:
        for target, name, replacement in PARTS[part]:
            stack.enter_context(patch.object(target, name, replacement))
        yield


def file_bytes(checkpoint: Checkpoint, effort: int) -> int:
    """Return the size of the file of a checkpoint that is labels already."""
    return encode.encode_checkpoint(checkpoint, Recipe(preset="lossless"), effort=effort).n_bytes


@click.command(help=__doc__)
@click.argument("models", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default="", metavar="TEXT", help="Only sets whose title holds this.")
@click.option("--effort", default=9, show_default=True, help="1 to 9.")
@click.option("--side", default=1024, show_default=True, help="Of the synthetic layer.")
def main(models: Path, only: str, effort: int, side: int) -> None:
    """Print the table."""
    click.echo(f"{'set':40}{'bytes':>9}  " + "".join(f"{part:>17}" for part in PARTS))
    for one in suite_sets(models, side, only):
        checkpoint = one.checkpoint
        whole = file_bytes(checkpoint, effort)
        cells = []
        for part in PARTS:
            with without(part):
                cells.append(f"{100 * (file_bytes(checkpoint, effort) / whole - 1):+16.2f}%")
        click.echo(f"{one.title:40}{whole:9}  " + "".join(cells))


if __name__ == "__main__":
    main()
