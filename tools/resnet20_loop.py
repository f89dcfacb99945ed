"""The training loop of the reproduction with ResNet-20: weights on grids, a teacher, and bits at a price."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from resnet20_data import Bank
from torch import Tensor, nn
from torch.nn import functional

from dcompress.train import Compressor, RateStage, Stage

WARMUP = 50  # steps
LAST_RATE = 0.02  # of the highest


@dataclass(frozen=True)
class Loop:
    """How each file's weights are trained, with Adam and one cosine of the learning rate.

    Attributes
    ----------
    prices : tuple of float
        What a bit a weight of all matrices and kernels adds to the loss; for each file one, each going on
        from where the last one ended.
    epochs, batch : int
        For each file: passes over the training images (each time one copy of each), and images a step.
    rate : float
        Highest learning rate.
    temperature : float
        Of what the teacher says.
    """

    prices: tuple[float, ...]
    epochs: int = 16
    batch: int = 128
    rate: float = 6e-4
    temperature: float = 2.0


def stages_of(steps: Mapping[str, float], priced: Collection[str], loop: Loop, n_images: int) -> list[Stage]:
    """Return what a `Compressor` does: all tensors on grids, and for some of them one price after the other.

    Parameters
    ----------
    steps : mapping of str to float
        By tensor.
    priced : collection of str
        The tensors whose bits have a price.
    loop : Loop
        Its prices.
    n_images : int
        That are learnt from.
    """
    stages: list[Stage] = [RateStage(name, step=step) for name, step in steps.items() if name not in priced]
    for number, price in enumerate(loop.prices):
        begin = number * n_steps(loop, n_images)
        stages += [RateStage(name, begin, step=steps[name], price=price) for name in priced]
    return stages


def n_steps(loop: Loop, n_images: int) -> int:
    """Return the steps of training for one file."""
    return loop.epochs * math.ceil(n_images / loop.batch)


def fit(
    model: nn.Module,
    compressor: Compressor,
    bank: Bank,
    loop: Loop,
    generator: torch.Generator,
    *,
    run: Callable[[Tensor], Tensor] | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train a model for one file to do as a teacher does, bits at a price; norms stay as in evaluation.

    Parameters
    ----------
    model : Module
        In the compressor.
    compressor : Compressor
        Made of `stages_of`, and told of every step.
    bank : Bank
        Images with the teacher's answers.
    loop : Loop
        Settings.
    generator : Generator
        Chooses images and copies.
    run : callable, optional
        The model, compiled.
    after_epoch : callable, optional
        Called with the number of epochs so far and the mean loss of the last one, the price of bits aside.
    """
    optimizer = torch.optim.Adam(model.parameters(), loop.rate)
    total, step = n_steps(loop, len(bank)), 0
    model.eval()
    for epoch in range(1, loop.epochs + 1):
        lost = 0.0
        for chosen in torch.randperm(len(bank), generator=generator).split(loop.batch):
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = loop.rate * min(1.0, (step + 1) / WARMUP) * max(LAST_RATE, cosine)
            images, judged = bank.batch(chosen, generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = (model if run is None else run)(images)
            loss = divergence(logits.float(), judged, loop.temperature)
            optimizer.zero_grad()
            torch.autograd.backward(loss + compressor.regularizer())
            optimizer.step()
            compressor.step()
            lost += float(loss.detach()) * len(chosen) / len(bank)
            step += 1
        if after_epoch is not None:
            after_epoch(epoch, lost)


def divergence(logits: Tensor, judged: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean Kullback-Leibler divergence from a teacher's answers, times the temperature squared."""
    said, wanted = ((one / temperature).log_softmax(1) for one in (logits, judged))
    mean = functional.kl_div(said, wanted, reduction="batchmean", log_target=True)
    return mean * temperature**2
