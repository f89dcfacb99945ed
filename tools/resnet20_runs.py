"""One run of the reproduction with ResNet-20: a calibrated start, training, files, and what is in them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peer_client import Row
from resnet20 import COUNTER, ResNet20, fill
from resnet20_data import Bank, Split, logits_of, normalised
from resnet20_loop import Loop, divergence, fit, stages_of
from resnet20_norms import fold_norms, vector_steps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import dcompress
from dcompress.recipe import Recipe
from dcompress.rules import Rule
from dcompress.train import Compressor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "cifar10_resnet20.safetensors"
BATCH = 64  # images of a calibration batch
NEAR = 0.01  # of the size, where a file without training is to come within
LEAN = 0.4  # of a step, from the start towards the dense network, at most
TRIALS = 4  # of its step
FALL = 0.7  # of its size: the power of the step that it falls with, more or less
SEED = 0  # of the changes of images
Weights = dict[str, Tensor]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How the files come about.

    Attributes
    ----------
    loop : Loop
        The training.
    step, slope : float
        Of the start: what all kernels are made multiples of, and how many squared steps a bit is worth.
    n_samples : int
        Images to calibrate with.
    n_copies, n_mixed : int
        Changed copies of the training images, and how many of them are mixed.
    n_held_out : int
        Training images to choose by.
    effort : int
        Of the encoder, from 1 to 9.
    """

    loop: Loop
    step: float = 0.17
    slope: float = 0.08
    n_samples: int = 512
    n_copies: int = 8
    n_mixed: int = 2
    n_held_out: int = 800
    effort: int = 9


@dataclass
class Run:
    """Images, the dense network, and what it says of them.

    Attributes
    ----------
    split : Split
        The images.
    dense : ResNet20
        The network, in evaluation mode.
    settings : Settings
        What to do.
    work : Path
        A folder where the start and the dense network's answers are kept.
    say : callable
        Told how it goes, line by line.
    """

    split: Split
    dense: ResNet20
    settings: Settings
    work: Path
    say: Say
    _held_out: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._held_out = logits_of(self.dense, self.split.held_out.pixels)

    def files(self, out: Path, seed: int, *, compiled: bool = False) -> Iterator[Path]:
        """Train, and give one file after the other."""
        loop, step = self.settings.loop, self.settings.step
        bank = self._bank()
        model = ResNet20().to(memory_format=torch.channels_last)
        fill(model, floats(self.dense))
        fold_norms(model)
        kernels = kernels_of(model)
        for name, start in self._start().items():
            if name in kernels:
                lean(model.get_parameter(name), start, LEAN * step)
        steps = dict.fromkeys(kernels, step) | vector_steps(model)
        compressor = Compressor(model, stages_of(steps, kernels, loop, len(bank)))
        run = cast("Callable[[Tensor], Tensor]", torch.compile(model)) if compiled else None
        generator = torch.Generator().manual_seed(seed)
        for number in range(1, len(loop.prices) + 1):

            def tell(epoch: int, lost: float, number: int = number) -> None:
                held_out = divergence(logits_of(model, self.split.held_out.pixels), self._held_out)
                self.say(
                    f"file {number}, epoch {epoch}/{loop.epochs}: loss {lost:.4f}, held-out KL "
                    f"{held_out:.4f}, {100 * compressor.sparsity():.1f} % zeros"
                )

            fit(model, compressor, bank, loop, generator, run=run, after_epoch=tell)
            path = out / f"resnet20.{number}.dcz"
            state = without_counters(compressor.plain_state_dict())
            dcompress.save_file(state, path, recipe="lossless", effort=self.settings.effort)
            so_far = dataclasses.replace(loop, prices=loop.prices[:number])
            text = write_settings(dataclasses.replace(self.settings, loop=so_far))
            path.with_suffix(".toml").write_text(text, encoding="utf-8")
            yield path

    def row(self, title: str, path: Path) -> Row:
        """Return what is in a file, read back from disk."""
        model = ResNet20().to(memory_format=torch.channels_last)
        fill(model, dcompress.load_file(path))
        return self._row(title, model, path.stat().st_size)

    def dense_row(self) -> Row:
        """Return what the dense network is like."""
        return self._row("dense", self.dense, sum(value.nbytes for value in floats(self.dense).values()))

    def samples(self) -> list[Tensor]:
        """Return batches to calibrate with."""
        return list(normalised(self.split.train.pixels[: self.settings.n_samples]).split(BATCH))

    def _row(self, title: str, model: ResNet20, n_bytes: int) -> Row:
        test = logits_of(model, self.split.test.pixels)
        held_out = logits_of(model, self.split.held_out.pixels)
        whole = sum(value.nbytes for value in floats(model).values())
        kernels = [model.get_parameter(name) for name in kernels_of(model)]
        n_zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
        return {
            "file": title,
            "bytes": n_bytes,
            "ratio": whole / n_bytes,
            "zeros": 100 * n_zeros / sum(kernel.numel() for kernel in kernels),
            "accuracy": 100 * float((test.argmax(1) == self.split.test.labels).double().mean()),
            "cross_entropy": float(functional.cross_entropy(test, self.split.test.labels)),
            "held_out": float(divergence(held_out, self._held_out)),
        }

    def _bank(self) -> Bank:
        """Return changed images with the dense network's answers, which are kept."""
        wanted = self.settings
        bank = Bank(self.split.train, wanted.n_copies, wanted.n_mixed, SEED)
        kept = self.work / f"answers.{len(bank)}.{wanted.n_copies}.{wanted.n_mixed}.safetensors"
        if kept.exists():
            bank.logits = load_file(kept)["logits"]
        else:
            self.say(f"the dense network judges {wanted.n_copies} copies of {len(bank)} images")
            bank.ask(self.dense)
            save_file({"logits": bank.logits}, kept)
        return bank

    def _start(self) -> Weights:
        """Return the weights of the dense network on a grid, calibrated layer by layer; they are kept."""
        wanted = self.settings
        kept = self.work / f"start.{wanted.step:g}.{wanted.slope:g}.{wanted.n_samples}.dcz"
        if not kept.exists():
            self.say("the dense network is calibrated layer by layer")
            rule = Rule("*", {"step": wanted.step, "slope": wanted.slope, "states": 0})
            plain = [name for name in floats(self.dense) if "conv" not in name and name != "linear.weight"]
            recipe = Recipe("lossless", rules=(rule,), excludes=tuple(plain))
            found = dcompress.calibrate(self.dense, self.samples(), recipe=recipe, effort=wanted.effort)
            dcompress.save_file(
                floats(self.dense), kept, recipe=recipe, calibration=found, effort=wanted.effort
            )
        return dcompress.load_file(kept)


def load_dense(path: Path) -> ResNet20:
    """Return the dense network, in evaluation mode."""
    model = ResNet20().to(memory_format=torch.channels_last)
    fill(model, load_file(path))
    return cast("ResNet20", model)


def floats(model: nn.Module) -> Weights:
    """Return the state dict without the counters of batches."""
    return without_counters(model.state_dict())


def without_counters(state: Weights) -> Weights:
    """Return a state dict without the counters of batches, which evaluation has no use for."""
    return {name: value.contiguous() for name, value in state.items() if not name.endswith(COUNTER)}


def kernels_of(model: nn.Module) -> list[str]:
    """Return the names of matrices and kernels."""
    return [name for name, value in model.named_parameters() if value.ndim > 1]


@torch.no_grad()
def lean(weight: Tensor, start: Tensor, reach: float) -> None:
    """Set a tensor to another one, but leaning as far as ``reach`` towards what it was before."""
    weight.copy_(torch.clamp(weight, start - reach, start + reach))


def without_training(run: Run, n_bytes: int, out: Path) -> Row:
    """Return what the dense network is like in a file of about that size, calibrated layer by layer."""
    step, best = run.settings.step / 1.5 * (46_000 / n_bytes) ** (1 / FALL), -1
    weights, effort = floats(run.dense), run.settings.effort
    path = out / f"beside.{n_bytes}.dcz"
    for _ in range(TRIALS):
        recipe = Recipe(step=float(f"{step:.4g}"))
        found = dcompress.calibrate(run.dense, run.samples(), recipe=recipe, effort=effort)
        frame = dcompress.save(weights, recipe=recipe, calibration=found, effort=effort)
        run.say(f"step {recipe.step}: {len(frame):,} bytes, for {n_bytes:,}")
        if best < 0 or abs(len(frame) - n_bytes) < abs(best - n_bytes):
            path.write_bytes(frame)
            best = len(frame)
        if abs(len(frame) / n_bytes - 1) <= NEAR:
            break
        step *= (len(frame) / n_bytes) ** (1 / FALL)
    return run.row("calibrated, no training", path)


def write_settings(settings: Settings) -> str:
    """Return settings as TOML; floats, whole numbers and lists of floats are written as in JSON."""
    values = dataclasses.asdict(settings)
    loop = values.pop("loop")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["", "[loop]", *(f"{key} = {json.dumps(value)}" for key, value in loop.items())]
    return "\n".join(lines) + "\n"


def read_settings(path: Path) -> Settings:
    """Return the settings in a TOML file.

    Raises
    ------
    ValueError
        There are none: what is wrong is named.
    """
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    loop = data.pop("loop", {})
    try:
        loop["prices"] = tuple(float(one) for one in loop["prices"])
        return Settings(Loop(**loop), **data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name}: {error}") from error
