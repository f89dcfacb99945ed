"""Train LeNet-300-100 and LeNet-5 from scratch to small files, by the paper's recipe and by our best one.

Usage: ``python tools/reproduce_lenet.py --mnist DIR``, where ``DIR`` holds the four MNIST idx files, plain
or with the ending ``.gz``. Pixels are divided by 255, nothing else. The last 5,000 training images are held
out, to choose settings by; the test images are looked at for the final figures alone. The paper's tables are
printed beside ours, and every error is that of the network in the file, read back from disk.

``--check`` trains nothing: it measures files that are there, such as the best ones in ``fixtures/models``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch
from lenet_data import load_split
from lenet_networks import NETWORKS
from lenet_recipes import RunError, find_recipe
from lenet_runs import Runner, outcome_of
from lenet_tables import PAPER, summary, table
from train_lenet import DataError, mnist_option

from dcompress import DcompressError


@click.command()
@mnist_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the files here: NETWORK.RECIPE.dcz, of later seeds NETWORK.RECIPE.SEED.dcz.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=list(NETWORKS),
    type=click.Choice(list(NETWORKS)),
    help="Which network; may be given twice. Default: both.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    default=["paper", "best"],
    help="paper, best, or a TOML file; may be given more than once. Default: paper and best.",
)
@click.option("--seed", "seeds", multiple=True, default=[1], type=int, help="May be given more than once.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the teacher here, for other runs. One that is there is taken.",
)
@click.option("--held-out", default=5000, show_default=True, help="Training images to choose by.")
@click.option("--check", is_flag=True, help="Train nothing: measure the best files, or those in --out.")
def main(
    folder: Path,
    out: Path | None,
    models: tuple[str, ...],
    recipes: tuple[str, ...],
    seeds: tuple[int, ...],
    work: Path | None,
    held_out: int,
    check: bool,
) -> None:
    """Reproduce the LeNets of "Deep Compression", and make them smaller than that."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums come in another order with another number of threads
    torch.set_flush_denormal(True)  # decayed weights would slow the arithmetic down
    try:
        if check:
            _check(folder, models, out, held_out)
            return
        wanted = {(name, which): find_recipe(which, name) for which in recipes for name in models}
        runner = Runner(load_split(folder, held_out), lambda line: click.echo(line, err=True), work)
        for made in (out, work):
            if made is not None:
                made.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as passing:
            for (name, which), recipe in wanted.items():
                outcomes = []
                for seed in seeds:
                    middle = "" if seed == seeds[0] else f".{seed}"
                    path = (out or Path(passing)) / f"{name}.{Path(which).stem}{middle}.dcz"
                    click.echo(f"{name}, {which}, seed {seed}", err=True)
                    outcomes.append(runner.run(NETWORKS[name], recipe, seed, path))
                    heading = f"recipe {which}, seed {seed}, {outcomes[-1].seconds:.0f} s"
                    click.echo(f"{table(NETWORKS[name], PAPER[name], outcomes[-1])}\n{heading}\n")
                if len(outcomes) > 1:
                    click.echo(f"{name}, {which}: {summary(outcomes)}\n")
    except (DataError, RunError, DcompressError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


def _check(folder: Path, models: tuple[str, ...], out: Path | None, n_held_out: int) -> None:
    """Print what files that are there are like."""
    split = load_split(folder, n_held_out)
    for name in models:
        path = (out or Path(__file__).parents[1] / "fixtures" / "models") / f"{name}.best.dcz"
        outcome = outcome_of(path, NETWORKS[name], split)
        click.echo(f"{table(NETWORKS[name], PAPER[name], outcome)}\n")


if __name__ == "__main__":
    main()
