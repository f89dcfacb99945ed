"""Fine-tune ResNet-20 to small files on some images of CIFAR-10, beside files that need no training.

    python tools/reproduce_resnet20.py --models MODELS --data DATA --out OUT

MODELS has ``cifar10_resnet20.safetensors``; DATA has, at any depth, ``cifar10_train*.npz`` and
``cifar10_test*.npz``. The dense network is calibrated layer by layer and put on a grid of equal steps. Then
it learns from its own dense answers to changed images, the weights rounded in every step and every bit at a
price, which is higher for each file than for the one before. The last training images are held out, to choose
settings by; the test images are looked at for the final figures alone, and those are of the networks in the
files, read back from disk.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import torch
from peer_client import Row, print_table
from resnet20_data import load_split
from resnet20_loop import Loop
from resnet20_runs import FILE, Run, Settings, load_dense, read_settings, without_training

from dcompress import DcompressError

COLUMNS = {
    "file": "file s",
    "bytes": "bytes ,",
    "ratio": "times smaller .1f",
    "zeros": "zeros, % .1f",
    "accuracy": "accuracy, % .2f",
    "cross_entropy": "cross-entropy .4f",
    "held_out": "held-out KL .4f",
}
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
@click.option("--models", required=True, type=FOLDER, help="Where the dense network is.")
@click.option("--data", required=True, type=FOLDER, help="Where the images are.")
@click.option("--out", required=True, type=FOLDER, help="Write resnet20.1.dcz and .toml, and so on, there.")
@click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings: one of the .toml files of an earlier run.",
)
@click.option("--work", type=FOLDER, help="Keep what training starts from, for other runs.  [--out]")
@click.option("--seed", default=1, show_default=True, help="Of the order of images.")
@click.option("--compile", "compiled", is_flag=True, help="Twice as fast; needs a C++ compiler, other bytes.")
@click.option(
    "--beside/--alone", default=True, help="Whether to encode without training to the same sizes too."
)
@click.option("--threads", default=1, show_default=True, help="Of torch; files depend on them a little.")
def main(
    models: Path,
    data: Path,
    out: Path,
    recipe: Path | None,
    work: Path | None,
    seed: int,
    compiled: bool,
    beside: bool,
    threads: int,
) -> None:
    """Train, write, read back, and print."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    try:
        settings = Settings(Loop((5.0, 9.0))) if recipe is None else read_settings(recipe)
        split, dense = load_split(data, settings.n_held_out), load_dense(models / FILE)
        for folder in (out, work or out):
            folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()

        def say(line: str) -> None:
            click.echo(f"{time.monotonic() - began:6.0f} s  {line}", err=True)

        run = Run(split, dense, settings, work or out, say)
        rows: list[Row] = [run.dense_row()]
        for path in run.files(out, seed, compiled=compiled):
            rows.append(run.row(path.name, path))
            click.echo(str(rows[-1]), err=True)
        if beside:
            for n_bytes in [int(row["bytes"]) for row in rows[1:]]:
                rows.append(without_training(run, n_bytes, out))
                click.echo(str(rows[-1]), err=True)
        print_table("ResNet-20 on CIFAR-10, read back from the files", rows, COLUMNS)
    except (DcompressError, OSError, ValueError, KeyError) as error:
        click.echo(f"error: {error.args[0] if isinstance(error, KeyError) else error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
