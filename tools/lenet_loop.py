"""The training loop of the reproduction: any network, a bank of images, maybe a teacher and a compressor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lenet_data import Bank
from torch import Tensor, nn
from torch.nn import functional
from train_lenet import CLASSES

from dcompress.train import Compressor

WARMUP = 200  # steps, but at most a tenth of all


class Teacher(nn.Module):
    """A convolutional network somewhat larger than LeNet-5, which others learn from."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 24, 5), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(24, 48, 5), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(768, 128), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Dropout(0.3), nn.Linear(128, CLASSES)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of shape (n, 1, 28, 28)."""
        logits: Tensor = self.layers(images)
        return logits


@dataclass(frozen=True)
class Loop:
    """How a network is trained, with Adam and one cosine of the learning rate.

    Attributes
    ----------
    epochs, batch : int
        Passes over the training images (each time one copy of each), and images a step.
    rate : float
        Highest learning rate.
    decay : float
        Weight decay, as in AdamW.
    soft : float
        Weight of the teacher's part in the loss; 0 = labels alone.
    temperature : float
        Of the teacher's part.
    """

    epochs: int
    batch: int = 256
    rate: float = 2e-3
    decay: float = 0.0
    soft: float = 0.0
    temperature: float = 2.0


def n_steps(loop: Loop, n_images: int) -> int:
    """Return the steps of a whole run."""
    return loop.epochs * math.ceil(n_images / loop.batch)


def fit(
    model: nn.Module,
    bank: Bank,
    loop: Loop,
    seed: int,
    compressor: Compressor | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train a network.

    Parameters
    ----------
    model : Module
        Changed in place.
    bank : Bank
        What it learns from; with logits if the loop has a ``soft`` part.
    loop : Loop
        Settings.
    seed : int
        Of the order of images and of the choice of their copies.
    compressor : Compressor, optional
        Told of every step.
    after_epoch : callable, optional
        Called with the number of epochs so far.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), loop.rate, weight_decay=loop.decay)
    total, step = n_steps(loop, len(bank.labels)), 0
    for epoch in range(1, loop.epochs + 1):
        model.train()
        for chosen in torch.randperm(len(bank.labels), generator=generator).split(loop.batch):
            rise = min(1.0, (step + 1) / min(WARMUP, 0.1 * total))
            for group in optimizer.param_groups:
                group["lr"] = loop.rate * rise * 0.5 * (1 + math.cos(math.pi * step / total))
            pixels, labels, judged = bank.batch(chosen, generator)
            loss = _loss(model(pixels), labels, judged, loop)
            if compressor is not None:
                loss = loss + compressor.regularizer()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1
            if compressor is not None:
                compressor.step()
        if after_epoch is not None:
            after_epoch(epoch)


def _loss(logits: Tensor, labels: Tensor, judged: Tensor | None, loop: Loop) -> Tensor:
    """Return cross-entropy with the labels, and with what the teacher says (Hinton et al. 2015)."""
    hard = functional.cross_entropy(logits, labels)
    if judged is None or not loop.soft:
        return hard
    heat = loop.temperature
    wanted = functional.softmax(judged / heat, 1)
    soft = functional.cross_entropy(logits / heat, wanted) * heat**2
    return (1 - loop.soft) * hard + loop.soft * soft
