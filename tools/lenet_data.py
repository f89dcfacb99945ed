"""MNIST for the reproduction: images in memory, changed copies of them, and what a teacher says of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from train_lenet import CLASSES, HELD_OUT, SIDE, DataError, Images, load_images

BLOCK = 1000  # images that are changed, or shown to a teacher, at a time
NOISE_SIDE = 7  # elastic changes come from a grid of so many random arrows each way


@dataclass(frozen=True)
class Split:
    """What to learn from, what to choose by, and what to look at once, in the end."""

    train: Images
    held_out: Images
    test: Images


@dataclass(frozen=True)
class Changes:
    """How copies of the training images are changed, each image on its own.

    Attributes
    ----------
    copies : int
        Changed copies beside the images themselves.
    shift : float
        Pixels, at most, each way; whole ones if nothing else changes.
    degrees, scale : float
        Rotation and change of size and aspect, at most.
    elastic : float
        Pixels: standard deviation of smooth random arrows.
    """

    copies: int = 8
    shift: float = 1.0
    degrees: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether images move by whole pixels alone."""
        return not (self.degrees or self.scale or self.elastic)


class Bank:
    """Training images and changed copies of them, as bytes, with labels and with a teacher's logits.

    Parameters
    ----------
    images : Images
        The originals: copy 0.
    changes : Changes
        What the other copies are like.
    seed : int
        Of the changes.
    """

    def __init__(self, images: Images, changes: Changes, seed: int) -> None:
        self.labels = images.labels
        generator = torch.Generator().manual_seed(seed)
        copies = [images.pixels.mul(255).round().to(torch.uint8)]
        for _ in range(changes.copies):
            parts = [
                _changed(part, changes, generator).mul_(255).round_().to(torch.uint8)
                for part in images.pixels.split(BLOCK)
            ]
            copies.append(torch.cat(parts))
        self.pixels = torch.stack(copies)
        self.logits: Tensor | None = None

    @torch.no_grad()
    def ask(self, teacher: nn.Module) -> None:
        """Have a teacher judge every copy of every image, once."""
        teacher.eval()
        flat = self.pixels.flatten(0, 1)
        found = [teacher(_floats(part)) for part in flat.split(BLOCK)]
        self.logits = torch.cat(found).half().reshape(*self.pixels.shape[:2], CLASSES)

    def batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return some images, each of a random copy: pixels from 0 to 1, labels, and logits if asked for."""
        copies = torch.randint(len(self.pixels), (len(chosen),), generator=generator)
        logits = None if self.logits is None else self.logits[copies, chosen].float()
        return _floats(self.pixels[copies, chosen]), self.labels[chosen], logits


def load_split(folder: Path, n_held_out: int = HELD_OUT) -> Split:
    """Load MNIST; the last training images are held out.

    Raises
    ------
    DataError
        A file is missing or wrong, or there are too few images.
    """
    known, test = load_images(folder, "train"), load_images(folder, "t10k")
    split = len(known.labels) - n_held_out
    if split <= 0:
        raise DataError(f"need more than {n_held_out} training images, found {len(known.labels)}")
    return Split(known.part(0, split), known.part(split, split + n_held_out), test)


def _floats(pixels: Tensor) -> Tensor:
    """Return bytes as floats from 0 to 1."""
    return pixels.float().div_(255)


def _changed(images: Tensor, changes: Changes, generator: torch.Generator) -> Tensor:
    """Return images of shape (n, 1, 28, 28), each changed in its own way."""
    n = len(images)
    if changes.whole:
        reach = round(changes.shift)
        moves = torch.randint(2 * reach + 1, (2, n, 1, 1), generator=generator)
        places = torch.arange(SIDE)
        padded = functional.pad(images[:, 0], (reach,) * 4)
        rows, columns = moves[0] + places[:, None], moves[1] + places
        return padded[torch.arange(n)[:, None, None], rows, columns][:, None]

    def spread(size: float, *shape: int) -> Tensor:
        return size * (2 * torch.rand(n, *shape, generator=generator) - 1)

    angle, stretch = spread(math.radians(changes.degrees)), 1 + spread(changes.scale, 2)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, sin, cos], 1).reshape(n, 2, 2) * stretch[:, None]
    move = spread(2 * changes.shift / SIDE, 2, 1)
    grid = functional.affine_grid(torch.cat([turn, move], 2), [n, 1, SIDE, SIDE], align_corners=False)
    if changes.elastic:
        arrows = torch.randn(n, 2, NOISE_SIDE, NOISE_SIDE, generator=generator)
        arrows = functional.interpolate(arrows, (SIDE, SIDE), mode="bicubic", align_corners=True)
        grid = grid + arrows.permute(0, 2, 3, 1) * (2 * changes.elastic / SIDE)
    return functional.grid_sample(images, grid, align_corners=False).clamp_(0, 1)
