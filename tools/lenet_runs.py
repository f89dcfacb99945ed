"""One run of a recipe: teacher, dense network, narrow network, compression; and what the file then is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from lenet_data import Bank, Split
from lenet_loop import Loop, Teacher, fit, n_steps
from lenet_networks import Network, State, tidy, widen
from lenet_recipes import RunError, RunRecipe
from torch import nn
from train_lenet import LeNet5, LeNet300100, error_rate

import dcompress
from dcompress.train import CompressionReport, Compressor, measure, prune_channels

N_SAMPLES = 1000  # images that channels are chosen and fitted by
SEED = 0  # of the teacher, and of the copies of the images
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is in a file.

    Attributes
    ----------
    path : Path
        The file.
    n_bytes : int
        Its size.
    held_out_error, test_error : float
        Percent wrong, of the network that is read back from it.
    dense_error : float or None
        Percent of test images that the dense network before had wrong; None if the recipe trains none.
    report : CompressionReport
        By tensor and stage.
    seconds : float
        That the run took, the teacher aside.
    """

    path: Path
    n_bytes: int
    held_out_error: float
    test_error: float
    dense_error: float | None
    report: CompressionReport
    seconds: float


class Runner:
    """Runs recipes on the same images; a teacher, and what it says of them, is made once.

    Parameters
    ----------
    split : Split
        The images.
    say : callable
        Told how it goes, line by line.
    work : Path, optional
        A folder where a teacher is kept for other runs.
    """

    def __init__(self, split: Split, say: Say, work: Path | None = None) -> None:
        self.split = split
        self.say = say
        self.work = work
        self._bank: tuple[object, Bank] | None = None

    def run(self, network: Network, recipe: RunRecipe, seed: int, path: Path) -> Outcome:
        """Train a network from scratch, write its file, and measure what is read back from it.

        Raises
        ------
        RunError, RecipeError
            The recipe does not fit the network.
        """
        bank = self._images(recipe)
        began = time.monotonic()
        torch.manual_seed(seed)
        model = network.build()
        dense_error = None
        if recipe.dense is not None:
            self._fit("dense", model, bank, recipe.dense, seed)
            dense_error = error_rate(model, self.split.test)
        if recipe.channels:
            model = self._narrow(model, recipe, bank, seed)
        compressor = Compressor(model, recipe.compress)
        self._fit("compress", model, bank, recipe.loop, seed, compressor)
        state = cast("State", compressor.finish().state_dict())
        full = widen(tidy(state, network) if recipe.tidy else state, network)
        dcompress.save_file(full, path, recipe=recipe.compress.encode, effort=recipe.effort)
        return outcome_of(path, network, self.split, dense_error, time.monotonic() - began)

    def _images(self, recipe: RunRecipe) -> Bank:
        """Return the bank of a recipe, judged by its teacher if it has one."""
        key = (recipe.images, recipe.teacher)
        if self._bank is None or self._bank[0] != key:
            bank = Bank(self.split.train, recipe.images, SEED)
            if recipe.teacher is not None:
                bank.ask(self._teacher(bank, recipe))
            self._bank = (key, bank)
        return self._bank[1]

    def _teacher(self, bank: Bank, recipe: RunRecipe) -> nn.Module:
        """Return a trained teacher: from the folder, if it is there."""
        assert recipe.teacher is not None
        torch.manual_seed(SEED)
        teacher = Teacher()
        kept = None if self.work is None else self.work / "teacher.dcz"
        if kept is not None and kept.exists():
            dcompress.load_model(teacher, kept)
            self.say(f"teacher: {kept}, held-out error {error_rate(teacher, self.split.held_out):.2f} %")
            return teacher
        self._fit("teacher", teacher, bank, recipe.teacher, SEED)
        if kept is not None:
            dcompress.save_model(teacher, kept, recipe="lossless")
        return teacher

    def _narrow(self, model: nn.Module, recipe: RunRecipe, bank: Bank, seed: int) -> nn.Module:
        """Return a network of fewer filters and units, fitted to do as the given one does."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(bank.labels), generator=generator)[:N_SAMPLES]
        samples = bank.batch(chosen, generator)[0]
        pruning = prune_channels(
            model, samples[:1], recipe.channels, method=recipe.channel_method, samples=samples.split(500)
        )
        self.say(str(pruning))
        self.say(f"narrow: held-out error {error_rate(pruning.model, self.split.held_out):.2f} %")
        return pruning.model

    def _fit(
        self,
        title: str,
        model: nn.Module,
        bank: Bank,
        loop: Loop,
        seed: int,
        compressor: Compressor | None = None,
    ) -> None:
        """Train a network and say how it goes."""
        began = time.monotonic()
        if compressor is not None:
            last = max(stage.begin for stage in compressor.recipe.stages)
            if last >= n_steps(loop, len(bank.labels)):
                raise RunError(f"a stage begins at step {last}, after the last one")
        every = max(1, loop.epochs // 5)

        def tell(epoch: int) -> None:
            if epoch % every and epoch != loop.epochs:
                return
            error = error_rate(model, self.split.held_out)
            zeros = "" if compressor is None else f", {100 * compressor.sparsity():.2f} % zeros"
            seconds = time.monotonic() - began
            self.say(f"{title} {epoch}/{loop.epochs}: held-out error {error:.2f} %{zeros} ({seconds:.0f} s)")

        if not isinstance(model, LeNet300100):
            model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        fit(model, bank, loop, seed, compressor, tell)
        if isinstance(model, LeNet5):
            model.to(memory_format=torch.contiguous_format)


def outcome_of(
    path: Path, network: Network, split: Split, dense_error: float | None = None, seconds: float = 0.0
) -> Outcome:
    """Read a file back from disk, and measure what is in it."""
    decoded = network.build()
    dcompress.load_model(decoded, path)
    report = measure(network.build(), split.test.pixels[:1], file=path)
    errors = error_rate(decoded, split.held_out), error_rate(decoded, split.test)
    return Outcome(path, path.stat().st_size, *errors, dense_error, report, seconds)
