"""ResNet-20 for CIFAR-10, for measuring only: the network of akamaster/pytorch_resnet_cifar10, evaluated.

Shortcuts are "option A" of He et al.: every second pixel, and channels of zeros to make up the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)  # of the pixels from 0 to 1, by channel
STD = (0.229, 0.224, 0.225)
BLOCKS = 3  # in each of the three stages
COUNTER = "num_batches_tracked"  # of batch norms; no use in evaluation


class Block(nn.Module):
    """Two convolutions and a shortcut past them; with twice the channels, half the pixels."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, n_out // n_in, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        missing = y.shape[1] - x.shape[1]
        if missing:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing // 2))
        return functional.relu(y + x)


class ResNet20(nn.Module):
    """The network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16)
        self.layer2 = _stage(16, 32)
        self.layer3 = _stage(32, 64)
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images of shape (n, 3, 32, 32)."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(n_in: int, n_out: int) -> nn.Sequential:
    """Return the blocks of one stage; the first changes the number of channels."""
    return nn.Sequential(Block(n_in, n_out), *(Block(n_out, n_out) for _ in range(BLOCKS - 1)))


@dataclass(frozen=True)
class Images:
    """Normalised images of shape (n, 3, 32, 32), with their labels."""

    pixels: Tensor
    labels: Tensor


def load_images(path: Path) -> Images:
    """Return test images.

    Parameters
    ----------
    path : Path
        An .npz file with ``images`` (uint8, n x 3 x 32 x 32) and ``labels``, or a folder somewhere in
        which there is one named ``cifar10_test*.npz``.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    if path.is_dir():
        found = sorted(path.rglob("cifar10_test*.npz"))
        if not found:
            raise FileNotFoundError(f"no cifar10_test*.npz in {path}")
        path = found[0]
    with np.load(path) as stored:
        pixels = torch.from_numpy(stored["images"].astype(np.float32)) / 255
        labels = torch.from_numpy(stored["labels"].astype(np.int64))
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return Images((pixels - mean) / std, labels)


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights into a model and put it into evaluation mode; counters of batches may be missing.

    Raises
    ------
    KeyError
        They are not those of the model.
    """
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = [name for name in missing if not name.endswith(COUNTER)] + list(unexpected)
    if wrong:
        raise KeyError(f"weights of another model: {', '.join(wrong)}")
    model.eval()


@torch.no_grad()
def evaluate(weights: Mapping[str, NDArray[np.float32]], images: Images) -> tuple[float, float]:
    """Return accuracy in percent and mean cross-entropy.

    Parameters
    ----------
    weights : mapping of str to ndarray of float32
        The state dict; counters of batches may be missing.
    images : Images
        What to classify.

    Raises
    ------
    KeyError
        The weights are not those of this network.
    """
    model = ResNet20()
    state = model.state_dict()
    for name, value in state.items():
        if not name.endswith(COUNTER):
            if name not in weights or weights[name].size != value.numel():
                raise KeyError(f"no ResNet-20: {name} of shape {tuple(value.shape)} is missing")
            state[name] = torch.from_numpy(np.array(weights[name], np.float32)).reshape(value.shape)
    model.load_state_dict(state)
    model.eval()
    logits = torch.cat([model(part) for part in images.pixels.split(256)])
    correct = (logits.argmax(1) == images.labels).double().mean()
    return 100 * float(correct), float(functional.cross_entropy(logits, images.labels))
