"""Train the two LeNet fixture models on MNIST and save them as safetensors.

The networks are trained with a smooth L1 penalty, so that most weights end very close to zero
(never by a hard cut) and the models can be pruned by magnitude without retraining.

Usage: ``python tools/train_lenet.py --mnist DIR``, where ``DIR`` holds the four MNIST idx files,
either plain or with the ending ``.gz``.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
LABELS_MAGIC = 0x00000801  # unsigned bytes, one dimension
SIDE = 28
CLASSES = 10
HELD_OUT = 5000
MOMENTUM = 0.9
WARMUP_STEPS = 200
MAX_GRAD_NORM = 5.0


class DataError(Exception):
    """A data file is missing or is not what it should be."""


class LeNet300100(nn.Module):
    """LeNet-300-100: three fully connected layers with ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(SIDE * SIDE, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of shape (n, 1, 28, 28)."""
        x = functional.relu(self.fc1(images.flatten(1)))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


class LeNet5(nn.Module):
    """Caffe's LeNet-5 (20-50-500-10): ReLU after fc1 is its only activation function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of shape (n, 1, 28, 28)."""
        x = functional.max_pool2d(self.conv1(images), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes
    ----------
    build : callable
        Makes the network with fresh random weights.
    epochs : int
        Passes over the training images, unless the command line says otherwise.
    batch : int
        Images per step.
    rate : float
        Highest learning rate; it decays to zero along a cosine.
    penalty : mapping of str to float
        Strength of the L1 penalty, by layer.
    knee : float
        Below about this size a weight decays in proportion to itself, not at a constant speed.
    """

    build: Callable[[], nn.Module]
    epochs: int
    batch: int
    rate: float
    penalty: Mapping[str, float]
    knee: float = 1e-3


RECIPES: dict[str, Recipe] = {
    "lenet_300_100": Recipe(
        build=LeNet300100,
        epochs=80,
        batch=128,
        rate=0.1,
        penalty={"fc1": 4e-5, "fc2": 6e-5, "fc3": 5e-5},
    ),
    "lenet_5": Recipe(
        build=LeNet5,
        epochs=9,
        batch=128,
        rate=0.1,
        penalty={"conv1": 2e-5, "conv2": 8e-5, "fc1": 7e-5, "fc2": 4e-5},
    ),
}


@dataclass(frozen=True)
class Images:
    """Images as floats from 0 to 1, of shape (n, 1, 28, 28), with their labels."""

    pixels: Tensor
    labels: Tensor

    def part(self, start: int, stop: int) -> Images:
        """Return the images from ``start`` up to ``stop``."""
        return Images(self.pixels[start:stop], self.labels[start:stop])


def read_idx(path: Path, magic: int) -> npt.NDArray[np.uint8]:
    """Read one idx file of unsigned bytes.

    Parameters
    ----------
    path : Path
        The file without the ending ``.gz``; if it does not exist, the ``.gz`` file is read.
    magic : int
        The magic number the file must begin with. Its last byte is the number of dimensions.

    Returns
    -------
    ndarray of uint8
        The values, in the shape that the file gives.

    Raises
    ------
    DataError
        If there is no such file, or it is not a whole idx file of that kind.
    """
    raw = _read_bytes(path)
    head = 4 + 4 * (magic & 0xFF)
    if len(raw) < head:
        raise DataError(f"{path.name}: too short to be an idx file ({len(raw)} bytes)")
    found, *shape = struct.unpack(f">{head // 4}I", raw[:head])
    if found != magic:
        raise DataError(f"{path.name}: magic number is 0x{found:08x}, expected 0x{magic:08x}")
    size, wanted = len(raw) - head, math.prod(shape)
    if size != wanted:
        raise DataError(f"{path.name}: {size} bytes of data, the header says {wanted}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            return path.read_bytes()
        if packed.is_file():
            return gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path.name}: {error}") from error
    raise DataError(f"no {path.name} or {packed.name} in {path.parent}")


def load_images(folder: Path, split: str) -> Images:
    """Load one half of MNIST.

    Parameters
    ----------
    folder : Path
        Where the idx files are.
    split : str
        ``"train"`` or ``"t10k"``.

    Returns
    -------
    Images
        The images, scaled to 0..1 and not normalised in any other way.

    Raises
    ------
    DataError
        If a file is missing or wrong, or the two files do not fit together.
    """
    pixels = read_idx(folder / f"{split}-images-idx3-ubyte", IMAGES_MAGIC)
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte", LABELS_MAGIC)
    if pixels.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{split} images are of shape {pixels.shape[1:]}, expected (28, 28)")
    if len(pixels) != len(labels) or len(pixels) == 0:
        raise DataError(f"{split} has {len(pixels)} images and {len(labels)} labels")
    if labels.max() >= CLASSES:
        raise DataError(f"{split} has a label above {CLASSES - 1}")
    scaled = torch.from_numpy(pixels.astype(np.float32) / np.float32(255))
    return Images(scaled.unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


@torch.no_grad()
def error_rate(model: nn.Module, images: Images) -> float:
    """Return the percentage of images that the model gets wrong."""
    model.eval()
    wrong = 0
    for start in range(0, len(images.labels), 500):
        some = images.part(start, start + 500)
        wrong += int((model(some.pixels).argmax(1) != some.labels).sum())
    return 100.0 * wrong / len(images.labels)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: a short linear rise, then a cosine down to zero."""
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _shifted_batches(
    images: Images, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images in random order, each batch moved by at most one pixel."""
    order = torch.randperm(len(images.labels), generator=generator)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
        padded = functional.pad(images.pixels[chosen], (1, 1, 1, 1))
        yield padded[:, :, down : down + SIDE, right : right + SIDE], images.labels[chosen]


@torch.no_grad()
def _add_penalty(model: nn.Module, recipe: Recipe) -> None:
    """Add the slope of the smooth L1 penalty to the gradients of the weights.

    The slope is w / (|w| + knee). Unlike sign(w) it does not make small weights swing about zero.
    """
    for layer, strength in recipe.penalty.items():
        weight = model.get_parameter(f"{layer}.weight")
        if weight.grad is not None:
            weight.grad.addcdiv_(weight, weight.abs().add_(recipe.knee), value=strength)


def train(recipe: Recipe, images: Images, held_out: Images, epochs: int, seed: int) -> nn.Module:
    """Train one model.

    Parameters
    ----------
    recipe : Recipe
        The network and its settings.
    images, held_out : Images
        What to learn from, and what to print the error of after each epoch.
    epochs : int
        Passes over ``images``.
    seed : int
        Fixes the first weights, the order of the images and their shifts.

    Returns
    -------
    Module
        The trained network.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = recipe.build()
    weights = model.parameters()
    optimizer = torch.optim.SGD(weights, lr=recipe.rate, momentum=MOMENTUM, nesterov=True)
    steps = epochs * math.ceil(len(images.labels) / recipe.batch)
    step = 0
    for epoch in range(1, epochs + 1):
        model.train()
        for pixels, labels in _shifted_batches(images, recipe.batch, generator):
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, recipe.rate)
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(pixels), labels))
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            _add_penalty(model, recipe)
            optimizer.step()
            step += 1
        click.echo(f"epoch {epoch}/{epochs}: held-out error {error_rate(model, held_out):.2f} %")
    return model


def write_safetensors(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights as float32, in the order of the layers.

    The file is written here and not by the safetensors package, because the package sorts the
    tensors by name and does not promise the order of the metadata, and so neither the same bytes.

    Parameters
    ----------
    path : Path
        The file to write.
    model : Module
        The network whose ``state_dict`` is saved.
    metadata : mapping of str to str
        Notes for the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    chunks: list[bytes] = []
    start = 0
    for name, tensor in model.state_dict().items():
        data = tensor.contiguous().numpy().astype("<f4").tobytes()
        offsets = [start, start + len(data)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        chunks.append(data)
        start += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of 8
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def _metadata(name: str, recipe: Recipe, epochs: int, seed: int, error: float) -> dict[str, str]:
    penalty = ", ".join(f"{layer} {value:g}" for layer, value in recipe.penalty.items())
    return {
        "model": name,
        "input": "MNIST, pixel / 255, shape (n, 1, 28, 28)",
        "training": (
            f"tools/train_lenet.py, {epochs} epochs, SGD, Nesterov momentum {MOMENTUM:g}, "
            f"peak rate {recipe.rate:g} with cosine decay, batch {recipe.batch}, "
            f"shifts of one pixel, smooth L1 penalty ({penalty}; knee {recipe.knee:g})"
        ),
        "seed": str(seed),
        "test_error_percent": f"{error:.2f}",
        "license": "Apache-2.0",
    }


def _make(name: str, folder: Path, out: Path, epochs: int | None, seed: int) -> None:
    recipe = RECIPES[name]
    count = epochs or recipe.epochs
    known = load_images(folder, "train")
    test = load_images(folder, "t10k")  # before training, so that a missing file shows at once
    split = len(known.labels) - HELD_OUT
    if split <= 0:
        raise DataError(f"need more than {HELD_OUT} training images, found {len(known.labels)}")
    click.echo(f"{name}: {count} epochs, seed {seed}")
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model = train(recipe, known.part(0, split), known.part(split, split + HELD_OUT), count, seed)
    error = error_rate(model, test)
    path = out / f"{name}.safetensors"
    write_safetensors(path, model, _metadata(name, recipe, count, seed, error))
    click.echo(f"{path}: test error {error:.2f} % ({time.monotonic() - began:.0f} s)")


mnist_option = click.option(
    "--mnist",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with the four MNIST idx files, plain or .gz.",
)


@click.command()
@mnist_option
@click.option(
    "--out",
    default=Path("fixtures/models"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write the models to.",
)
@click.option(
    "--model",
    "which",
    default="both",
    show_default=True,
    type=click.Choice([*RECIPES, "both"]),
    help="Which model to train.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Default: as each recipe says.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**32 - 1))
def main(folder: Path, out: Path, which: str, epochs: int | None, seed: int) -> None:
    """Train LeNet-300-100 and LeNet-5 on MNIST and save them as safetensors."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums come in another order with another number of threads
    torch.set_flush_denormal(True)  # decayed weights would slow the arithmetic down
    try:
        for name in RECIPES if which == "both" else [which]:
            _make(name, folder, out, epochs, seed)
    except (DataError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
