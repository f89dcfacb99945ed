"""Accuracy against bytes, of nncodec, of ours without data, and of ours with a few hundred samples.

    python tools/calibration_curve.py resnet20 --models MODELS --data DATA --peer-python peers/bin/python
    python tools/calibration_curve.py lenet5 mlp gru transformer --models MODELS --data DATA --plot curve.svg

DATA has, at any depth, MNIST's idx files and the CIFAR-10 images of ResNet-20; MODELS has the weights of
ResNet-20 and keeps those of the two networks that are trained here. For nncodec see `peers.py`.

Sizes are whole files of all float tensors. Cross-entropy and accuracy are those of the test images; KL is the
mean divergence from the dense network's answers, on images that are neither for calibration nor for testing.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from calibration_networks import KINDS, Subject, load_subject
from calibration_tables import DENSE, METHODS, NNCODEC, draw, print_levels, print_rows, print_smallest
from peer_client import Peers, Row
from resnet20 import fill
from torch import Tensor, nn
from torch.nn import functional

import dcompress
from dcompress.recipe import Recipe

WITHOUT, PLAIN, LAYERS = METHODS[1:]
BATCH = 64  # images of a calibration batch
EVALUATED = 250  # images at once

Weights = dict[str, Tensor]


class Judge:
    """What weights are worth, measured with a subject's images.

    Parameters
    ----------
    subject : Subject
        The network, dense.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.weights = float_tensors(subject.model)
        self._dense = log_odds(subject.model, subject.held_back)

    def judged(self, row: Row, weights: Mapping[str, Tensor]) -> Row:
        """Return a row with accuracy in percent, cross-entropy and KL added; the network stays dense."""
        model, subject = self._subject.model, self._subject
        fill(model, dict(weights))
        try:
            test, held_back = log_odds(model, subject.test), log_odds(model, subject.held_back)
        finally:
            fill(model, self.weights)
        correct = (test.argmax(1) == subject.labels).double().mean()
        divergence = functional.kl_div(held_back, self._dense, reduction="batchmean", log_target=True)
        return row | {
            "accuracy": 100 * float(correct),
            "cross_entropy": float(functional.nll_loss(test, subject.labels)),
            "kl": max(0.0, float(divergence)),
        }


@torch.no_grad()
def log_odds(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logarithms of the probabilities, float64 of shape (n, classes)."""
    return torch.cat([model(part) for part in images.split(EVALUATED)]).double().log_softmax(1)


def float_tensors(model: nn.Module) -> Weights:
    """Return copies of the float tensors of a model: what every coder gets."""
    return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}


def nncodec_rows(judge: Judge, peers: Peers, lambdas: Sequence[float], qps: Sequence[int]) -> Iterator[Row]:
    """Give the figures of nncodec for each qp and lambda."""
    with peers.share({name: value.numpy() for name, value in judge.weights.items()}) as workplace:
        for scale in lambdas:
            result = workplace.ask(task="lossy", qps=list(qps), lambda_scale=scale, keep=True)
            for point in result["points"]:
                decoded = {
                    name: torch.from_numpy(np.array(array, np.float32)).reshape(judge.weights[name].shape)
                    for name, array in workplace.decoded(point["qp"]).items()
                }
                row = {"who": NNCODEC, "setting": f"qp {point['qp']}, lambda {scale:g}"}
                row |= {"bytes": point["bytes"], "seconds": point["encode_seconds"]}
                yield judge.judged(row, decoded)


def our_rows(
    subject: Subject, judge: Judge, who: str, recipes: Sequence[Recipe], effort: int
) -> Iterator[Row]:
    """Give the figures of ours for each recipe.

    Parameters
    ----------
    subject : Subject
        The network, dense, and its calibration images.
    judge : Judge
        Of that network.
    who : str
        How: one of `METHODS`.
    recipes : sequence of Recipe
        With a step.
    effort : int
        From 1 to 9.
    """
    batches = list(subject.calibration.split(BATCH))
    plain: Any = None
    if who == PLAIN:
        plain = dcompress.calibrate(subject.model, batches)
    for recipe in recipes:
        start = time.perf_counter()
        options = {}
        if who == PLAIN:
            options["calibration"] = plain
        elif who == LAYERS:
            options["calibration"] = dcompress.calibrate(subject.model, batches, recipe=recipe, effort=effort)
        frame = dcompress.save(judge.weights, recipe=recipe, effort=effort, **options)
        seconds = time.perf_counter() - start
        row = {"who": who, "setting": f"step {recipe.step:.3g}", "bytes": len(frame), "seconds": seconds}
        yield judge.judged(row, dcompress.load(frame))


def spaced(ends: tuple[float, float], number: int) -> list[float]:
    """Return steps from the coarsest to the finest, each the same factor finer than the last.

    Examples
    --------
    >>> spaced((0.1, 0.4), 3)
    [0.4, 0.2, 0.1]
    """
    return [float(f"{step:.4g}") for step in np.geomspace(ends[1], ends[0], number)]


def fitting_qps(ends: tuple[float, float], stride: int) -> list[int]:
    """Return qps, whose steps are 2 ** (qp / 4), from the coarsest step to 0.6 of the finest or so.

    Examples
    --------
    >>> fitting_qps((0.25, 1.0), 2)
    [0, -2, -4, -6, -8, -10]
    """
    first, last = round(4 * math.log2(ends[1])), round(4 * math.log2(0.6 * ends[0]))
    return list(range(first, last - 1, -stride))


@dataclass(frozen=True)
class Settings:
    """What to measure each network with.

    Attributes
    ----------
    methods : sequence of str
        Some of `METHODS`.
    peers : Peers
        Where nncodec is.
    lambdas : sequence of float
        nncodec's weights of bits against error.
    qp_stride : int
        1: every qp. 2: every second, and so on.
    steps : str
        How many, within what the network allows, or a list of them.
    slope : float or None
        Of our recipes.
    effort : int
        Of ours.
    """

    methods: Sequence[str]
    peers: Peers
    lambdas: Sequence[float]
    qp_stride: int
    steps: str
    slope: float | None
    effort: int


def measure(name: str, subject: Subject, settings: Settings) -> list[Row]:
    """Return the rows of one network, the dense one first; each is printed as it comes, to stderr."""
    judge = Judge(subject)
    n_bytes = sum(value.nbytes for value in judge.weights.values())
    rows = [judge.judged({"model": name, "who": DENSE, "bytes": n_bytes}, judge.weights)]
    if settings.steps.isdigit():
        steps = spaced(subject.steps, int(settings.steps))
    else:
        steps = [float(one) for one in settings.steps.split(",")]
    recipes = [Recipe(step=step, slope=settings.slope) for step in steps]
    for who in settings.methods:
        if who == NNCODEC:
            qps = fitting_qps(subject.steps, settings.qp_stride)
            found = nncodec_rows(judge, settings.peers, settings.lambdas, qps)
        else:
            found = our_rows(subject, judge, who, recipes, settings.effort)
        for row in found:
            rows.append({"model": name} | row)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
@click.argument("names", nargs=-1, required=True, type=click.Choice(list(KINDS)), metavar="NETWORK...")
@click.option("--data", required=True, type=FOLDER, help="Images.")
@click.option("--models", type=FOLDER, help="Weights.  [a temporary folder]")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="What to measure.")
@click.option("--samples", default=1024, show_default=True, help="Images to calibrate with.")
@click.option("--effort", default=6, show_default=True, help="Of ours.")
@click.option("--slope", type=float, help="Of ours: squared steps that a bit is worth.")
@click.option("--steps", default="10", show_default=True, help="How many, or which, as in 0.05,0.1.")
@click.option("--lambdas", default="0,1", show_default=True, help="nncodec's weights of bits against error.")
@click.option("--qp-stride", default=1, show_default=True, help="2: every second qp of nncodec.")
@click.option(
    "--peer-python", default=sys.executable, help="Interpreter nncodec is installed for.  [this one]"
)
@click.option("--threads", default=1, show_default=True, help="Of torch; figures depend on them a little.")
@click.option("--rows", "row_files", multiple=True, type=FILE, help="Rows of an earlier run, to be added.")
@click.option("--json", "json_file", type=FILE, help="Write all rows there.")
@click.option("--plot", type=FILE, help="Draw the curves of the first network there: .svg or .png.")
def main(
    names: tuple[str, ...],
    data: Path,
    models: Path | None,
    methods: str,
    samples: int,
    effort: int,
    slope: float | None,
    steps: str,
    lambdas: str,
    qp_stride: int,
    peer_python: str,
    threads: int,
    row_files: tuple[Path, ...],
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Measure, print and draw."""
    torch.set_num_threads(threads)
    wanted = [one for one in methods.split(",") if one]
    if unknown := [one for one in wanted if one not in METHODS]:
        raise click.UsageError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    peers = Peers(peer_python)
    if NNCODEC in wanted and NNCODEC not in peers.installed():
        wanted.remove(NNCODEC)
    settings = Settings(
        wanted, peers, [float(one) for one in lambdas.split(",")], qp_stride, steps, slope, effort
    )
    rows: list[Row] = [row for path in row_files for row in json.loads(path.read_text())]
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            subject = load_subject(name, models or Path(temporary), data, samples)
            mine = measure(name, subject, settings)
            mine += [row for row in rows if row["model"] == name and row["who"] != DENSE]
            rows = [row for row in rows if row["model"] != name] + mine
            if json_file is not None:
                json_file.write_text(json.dumps(rows, indent=1) + "\n")
            print_rows(subject.title, mine)
            print_smallest(mine)
            for key in ("kl", "cross_entropy", "error"):
                print_levels(mine, key)
    if plot is not None:
        draw(plot, KINDS[names[0]].title, [row for row in rows if row["model"] == names[0]])


if __name__ == "__main__":
    main()
