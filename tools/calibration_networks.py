"""The networks that `calibration_curve.py` measures: two LeNets, ResNet-20, and two trained on the spot.

Each comes with its images, in three parts that share none: training images to calibrate with, others of
which only the dense network's own answers are used, and test images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from resnet20 import Images as CifarImages
from resnet20 import ResNet20, fill
from resnet20 import load_images as load_cifar
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from train_lenet import CLASSES, HELD_OUT, SIDE, LeNet5, LeNet300100
from train_lenet import load_images as load_mnist

FIXTURES = Path(__file__).parent.parent / "fixtures" / "models"
N_HELD_BACK = 512  # training images on which outputs are compared with those of the dense network
N_STATES = 128  # of the GRU
WIDTH, HEADS = 64, 4  # of the transformer, and its layers:
DEPTH = 2
BATCH = 64
PEAK_RATE = 2e-3


@dataclass(frozen=True)
class Subject:
    """A trained network in evaluation mode, and what to measure it with.

    Attributes
    ----------
    title : str
        What it is called.
    model : Module
        From images to logits.
    calibration : Tensor of shape (n, channels, height, width)
        Training images, in an order that is fixed.
    held_back : Tensor
        Other images that are not for testing either; for MNIST of those that no network learned from.
    test, labels : Tensor
        Test images, and int64 of shape (n,).
    steps : tuple of float
        The finest and the coarsest step that are worth a look.
    """

    title: str
    model: nn.Module
    calibration: Tensor
    held_back: Tensor
    test: Tensor
    labels: Tensor
    steps: tuple[float, float]


class RowGRU(nn.Module):
    """Reads an image row by row; the last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIDE, N_STATES, batch_first=True)
        self.head = nn.Linear(N_STATES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images of shape (n, 1, 28, 28)."""
        states, _ = self.gru(images.squeeze(1))
        logits: Tensor = self.head(states[:, -1])
        return logits


class RowTransformer(nn.Module):
    """Rows of an image as tokens, with learned places; the mean of all tokens is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(SIDE, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images of shape (n, 1, 28, 28)."""
        tokens = self.layers(self.embed(images.squeeze(1)) + self.places)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


@dataclass(frozen=True)
class Kind:
    """How one network is had.

    Attributes
    ----------
    title : str
        What it is called.
    build : callable
        Makes it with fresh weights.
    file : str
        Where its weights are, among the fixtures or in the folder of models; "" if it is trained here.
    steps : tuple of float
        See `Subject`.
    epochs : int
        Of training, if it is trained here.
    """

    title: str
    build: Callable[[], nn.Module]
    file: str
    steps: tuple[float, float]
    epochs: int = 0


KINDS = {
    "resnet20": Kind("ResNet-20, CIFAR-10", ResNet20, "cifar10_resnet20.safetensors", (0.02, 0.16)),
    "lenet5": Kind("LeNet-5, MNIST", LeNet5, "lenet_5.safetensors", (0.005, 0.24)),
    "mlp": Kind("LeNet-300-100, MNIST", LeNet300100, "lenet_300_100.safetensors", (0.005, 0.24)),
    # The fixtures were trained to be sparse; these were not.
    "lenet5_dense": Kind("LeNet-5, trained as usual, MNIST", LeNet5, "", (0.01, 0.3), 3),
    "mlp_dense": Kind("LeNet-300-100, trained as usual, MNIST", LeNet300100, "", (0.01, 0.3), 6),
    "gru": Kind("GRU, MNIST row by row", RowGRU, "", (0.03, 0.6), 2),
    "transformer": Kind("Transformer, MNIST row by row", RowTransformer, "", (0.02, 0.4), 2),
}


def load_subject(name: str, models: Path, data: Path, n_calibration: int, seed: int = 1) -> Subject:
    """Return a network and its images.

    Parameters
    ----------
    name : str
        A key of `KINDS`.
    models : Path
        Folder with the weights of ResNet-20; a network that is trained here is kept there and trained
        only once.
    data : Path
        Folder in which, at any depth, the MNIST idx files are, or ``cifar10_test*.npz`` and
        ``cifar10_train*.npz``.
    n_calibration : int
        How many images to calibrate with.
    seed : int
        Fixes which images those are, and the training.

    Raises
    ------
    FileNotFoundError
        Weights or images are not there.
    """
    kind = KINDS[name]
    build = load_cifar_parts if name == "resnet20" else load_mnist_parts
    train, held_out, test = build(data)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    chosen, rest = order[:n_calibration], order[n_calibration : n_calibration + N_HELD_BACK]
    held_back = held_out.pixels[:N_HELD_BACK] if held_out is not None else train.pixels[rest]
    torch.manual_seed(seed)
    model = kind.build()
    if kind.epochs:
        path = models / f"{name}.safetensors"
        if not path.exists():
            fit(model, train, kind.epochs, seed)
            save_file(model.state_dict(), path)
    else:
        path = (models if name == "resnet20" else FIXTURES) / kind.file
    fill(model, load_file(path))
    pixels = train.pixels[chosen]
    return Subject(kind.title, model, pixels, held_back, test.pixels, test.labels, kind.steps)


Parts = tuple[CifarImages, "CifarImages | None", CifarImages]


def load_cifar_parts(data: Path) -> Parts:
    """Return training images, None, and test images: ResNet-20 has learned from all that are there."""
    found = sorted(data.rglob("cifar10_train*.npz"))
    if not found:
        raise FileNotFoundError(f"no cifar10_train*.npz in {data}")
    return load_cifar(found[0]), None, load_cifar(data)


def load_mnist_parts(data: Path) -> Parts:
    """Return the first 55,000 training images, the other 5,000, and the test images."""
    found = sorted(data.rglob("t10k-images-idx3-ubyte*"))
    if not found:
        raise FileNotFoundError(f"no t10k-images-idx3-ubyte in {data}")
    known, test = (load_mnist(found[0].parent, split) for split in ("train", "t10k"))
    split = len(known.labels) - HELD_OUT
    train, held_out = known.part(0, split), known.part(split, len(known.labels))
    a, b, c = (CifarImages(part.pixels, part.labels) for part in (train, held_out, test))
    return a, b, c


def fit(model: nn.Module, train: CifarImages, epochs: int, seed: int) -> None:
    """Train a model: Adam, one cycle, no tricks; about two minutes on one core."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), PEAK_RATE)
    n_steps = epochs * (len(train.labels) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, n_steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(train.labels), generator=generator)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = functional.cross_entropy(model(train.pixels[chosen]), train.labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            cycle.step()
        print(f"epoch {epoch + 1} of {epochs}: loss of the last batch {float(loss.detach()):.4f}", flush=True)
