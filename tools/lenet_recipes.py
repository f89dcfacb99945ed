"""Recipes of the reproduction: TOML files that say how a network is trained from scratch to a small file.

``[[train]]`` and what goes with it are those of `dcompress.train`, in steps of the last loop; the other
tables are described by `RunRecipe`. The paper's recipes stand here, the best ones beside their files.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lenet_data import Changes
from lenet_loop import Loop

from dcompress.train import TrainRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BEST = Path(__file__).parents[1] / "fixtures" / "models"
PAPER = {
    "lenet_300_100": """
# As Han et al. 2016 have it: train, prune to the paper's densities while training goes on, share, train the
# shared values. One-pixel shifts are ours.
[images]
copies = 8
shift = 1

[dense]
epochs = 20
decay = 0.01

[loop]
epochs = 30
rate = 1e-3

[[train]]
pattern = "fc1.weight"
sparsity = 0.92
schedule = "iterative"
begin = 1
end = 1721
every = 430

[[train]]
pattern = "fc2.weight"
sparsity = 0.91
schedule = "iterative"
begin = 1
end = 1721
every = 430

[[train]]
pattern = "fc3.weight"
sparsity = 0.74
schedule = "iterative"
begin = 1
end = 1721
every = 430

[[train]]                       # the paper has 6 bits here, 5 in all its other fully connected layers
pattern = "*.weight"
centroids = 31
begin = 4300
""",
    "lenet_5": """
# As Han et al. 2016 have it: train, prune to the paper's densities while training goes on, share, train the
# shared values. One-pixel shifts are ours.
[images]
copies = 8
shift = 1

[dense]
epochs = 6
decay = 0.01

[loop]
epochs = 7
rate = 1e-3

[[train]]
pattern = "conv1.weight"
sparsity = 0.34
begin = 1

[[train]]
pattern = "conv2.weight"
sparsity = 0.88
schedule = "iterative"
begin = 1
end = 431
every = 215

[[train]]
pattern = "fc1.weight"
sparsity = 0.92
schedule = "iterative"
begin = 1
end = 431
every = 215

[[train]]
pattern = "fc2.weight"
sparsity = 0.81
schedule = "iterative"
begin = 1
end = 431
every = 215

[[train]]
pattern = "conv*.weight"
bits = 8
begin = 1075

[[train]]                       # labels of 5 bits, as in the paper: one more is that of fillers
pattern = "fc*.weight"
centroids = 16
begin = 1075
""",
}

T = TypeVar("T", Changes, Loop)


class RunError(Exception):
    """A recipe makes no sense."""


@dataclass(frozen=True)
class RunRecipe:
    """How a small network comes about, from random weights on.

    Attributes
    ----------
    compress : TrainRecipe
        The ``[[train]]`` tables: what happens during ``loop``.
    loop : Loop
        Training with the compressor.
    images : Changes
        Copies of the training images.
    teacher : Loop or None
        How a larger network is trained whose judgement of every image the others learn from.
    dense : Loop or None
        Training before any of it.
    channels : mapping of str to float
        Fractions of the filters and units of the dense network to cut by `dcompress.train.prune_channels`.
    channel_method : str
        Its method.
    tidy : bool
        Whether hidden units are sorted and dead ones are dropped.
    effort : int
        How hard the encoder tries.
    """

    compress: TrainRecipe
    loop: Loop
    images: Changes = field(default_factory=Changes)
    teacher: Loop | None = None
    dense: Loop | None = None
    channels: Mapping[str, float] = field(default_factory=dict)
    channel_method: str = "lasso"
    tidy: bool = False
    effort: int = 9


def read_recipe(text: str, origin: str) -> RunRecipe:
    """Return the recipe in a TOML text.

    Raises
    ------
    RunError
        It is none.
    RecipeError
        What it says of `dcompress.train` makes no sense.
    """
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{origin}: not valid TOML: {error}") from error
    loops = {
        key: _table(Loop, data.pop(key, None), f"{origin}: {key}") for key in ("loop", "teacher", "dense")
    }
    loop = loops["loop"]
    if loop is None:
        raise RunError(f"{origin}: there is no table [loop]")
    images = _table(Changes, data.pop("images", {}), f"{origin}: images")
    channels = dict(data.pop("channels", {}))
    method = channels.pop("method", "lasso")
    tidy, effort = data.pop("tidy", False), data.pop("effort", 9)
    compress = TrainRecipe.from_dict(data, origin=origin)
    assert images is not None
    return RunRecipe(
        *(compress, loop, images, loops["teacher"], loops["dense"], channels, method, tidy, effort)
    )


def find_recipe(which: str, name: str) -> RunRecipe:
    """Return the recipe "paper", "best", or that of a file, for a network."""
    if which == "paper":
        return read_recipe(PAPER[name], "paper")
    path = BEST / f"{name}.best.toml" if which == "best" else Path(which)
    return read_recipe(path.read_text(encoding="utf-8"), path.name)


def _table(kind: type[T], table: object, origin: str) -> T | None:
    """Return the settings in a table, or None without one."""
    if table is None:
        return None
    known = [item.name for item in dataclasses.fields(kind)]
    if not isinstance(table, dict):
        raise RunError(f"{origin} must be a table")
    for key in table:
        if key not in known:
            raise RunError(f"{origin}: unknown setting {key!r}; the settings are {', '.join(known)}")
    try:
        return kind(**table)
    except TypeError as error:
        raise RunError(f"{origin}: {error}") from error
