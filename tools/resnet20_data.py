"""CIFAR-10 for the reproduction with ResNet-20: images as bytes, changed copies, a teacher's answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from resnet20 import MEAN, STD
from torch import Tensor, nn

BLOCK = 256  # images that a network judges at a time
REACH = 4  # pixels that an image moves each way, at most
CLASSES = 10


@dataclass(frozen=True)
class Photos:
    """Images as bytes, of shape (n, 3, 32, 32), with their labels."""

    pixels: Tensor
    labels: Tensor

    def part(self, begin: int, end: int) -> Photos:
        """Return those from ``begin`` to before ``end``."""
        return Photos(self.pixels[begin:end], self.labels[begin:end])


@dataclass(frozen=True)
class Split:
    """What to learn from, what to choose by, and what to look at once, in the end."""

    train: Photos
    held_out: Photos
    test: Photos


class Bank:
    """Changed copies of images, with what a teacher says of each.

    Every copy is mirrored or not, and moved by up to four pixels. In the last ones, images are also mixed
    with others, which leaves at least half of them: few images go further that way, and no labels are needed.

    Parameters
    ----------
    photos : Photos
        The originals.
    n_copies, n_mixed : int
        How many of each, and how many of those are mixed.
    seed : int
        Of the changes.
    """

    def __init__(self, photos: Photos, n_copies: int, n_mixed: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        copies = []
        for number in range(n_copies):
            copy = _moved(photos.pixels, generator)
            copies.append(_mixed(copy, generator) if number >= n_copies - n_mixed else copy)
        self.pixels = torch.stack(copies)
        self.logits = torch.zeros(*self.pixels.shape[:2], CLASSES)

    def __len__(self) -> int:
        return self.pixels.shape[1]

    def ask(self, teacher: nn.Module) -> None:
        """Have a teacher judge every copy of every image."""
        self.logits = logits_of(teacher, self.pixels.flatten(0, 1)).reshape(self.logits.shape)

    def batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return some images, each of a random copy, as a network takes them; and what the teacher says."""
        copies = torch.randint(len(self.pixels), (len(chosen),), generator=generator)
        return normalised(self.pixels[copies, chosen]), self.logits[copies, chosen]


def load_split(folder: Path, n_held_out: int) -> Split:
    """Return the images in the files ``cifar10_train*.npz`` and ``cifar10_test*.npz``, somewhere in a folder.

    The last training images are held out.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        There are too few training images.
    """
    known, test = _read(folder, "cifar10_train*.npz"), _read(folder, "cifar10_test*.npz")
    split = len(known.labels) - n_held_out
    if not 0 < split < len(known.labels):
        raise ValueError(f"of {len(known.labels)} training images {n_held_out} cannot be held out")
    return Split(known.part(0, split), known.part(split, len(known.labels)), test)


def normalised(pixels: Tensor) -> Tensor:
    """Return bytes as the floats that the network was trained with, channels last in memory."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    floats = (pixels.float().div_(255) - mean) / std
    return floats.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return what a network says of images, which are bytes: float32 of shape (n, classes)."""
    model.eval()
    return torch.cat([model(normalised(part)) for part in pixels.split(BLOCK)]).float()


def _read(folder: Path, pattern: str) -> Photos:
    found = sorted(folder.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder}")
    with np.load(found[0]) as stored:
        pixels, labels = stored["images"], stored["labels"]
    return Photos(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images, each mirrored or not, and moved by whole pixels; what comes in is grey."""
    n, _, height, width = pixels.shape
    grey = torch.tensor([round(255 * mean) for mean in MEAN], dtype=torch.uint8)
    padded = grey.reshape(1, 3, 1, 1).repeat(n, 1, height + 2 * REACH, width + 2 * REACH)
    padded[:, :, REACH:-REACH, REACH:-REACH] = pixels
    moves = torch.randint(2 * REACH + 1, (2, n, 1, 1, 1), generator=generator)
    mirrored = torch.randint(2, (n, 1, 1, 1), generator=generator).bool()
    columns = torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width))
    rows = torch.arange(height)[:, None]
    return padded[
        torch.arange(n)[:, None, None, None],
        torch.arange(3)[:, None, None],
        rows + moves[0],
        columns + moves[1],
    ]


def _mixed(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images, each mixed with another of them: half of the others' light at most."""
    n = len(pixels)
    share = 0.5 * torch.rand((n, 1, 1, 1), generator=generator)
    others = pixels[torch.randperm(n, generator=generator)]
    mixed = torch.lerp(pixels.float(), others.float(), share)
    return mixed.round_().to(torch.uint8)
