"""Compare with nncodec, zstd, brotli and constriction on the same labels and weights, in one go.

    python tools/peers.py labels --quick                     a small synthetic layer
    python tools/peers.py labels --suite MODELS              a fixed list of sets, of the models in a folder
    python tools/peers.py labels --sparsity 0.9 --values 31 model.safetensors
    python tools/peers.py lossy model.safetensors            bytes at equal SQNR
    python tools/peers.py lossy --accuracy DATA resnet20.safetensors

Peers run one after another in processes of their own, with the interpreter that --peer-python names; those
that are not installed there are left out. nncodec wants older packages than dcompress, so give the peers an
environment of their own, of Python 3.11 (--no-deps: what nncodec asks for does not fit together):

    python3.11 -m venv peers
    peers/bin/pip install torch==2.13.0 scikit-learn pillow pyyaml huggingface_hub pytz tzdata six
    peers/bin/pip install --no-deps numpy==1.26.4 "scipy<1.14" "pandas<2.3" python-dateutil h5py tqdm
    peers/bin/pip install --no-deps safetensors pybind11 ptflops timm torchvision nncodec==2.1.3
    peers/bin/pip install --no-deps opencv-python-headless==4.10.0.84 zstandard brotli constriction
    python tools/peers.py labels --peer-python peers/bin/python
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from peer_client import Peers, Row
from peer_labels import Effort, measure_set, print_set, print_summary
from peer_lossy import measure_accuracy, measure_sizes
from peer_sets import FIXTURES, SYNTHETIC, LabelSet, make_set, matrices, read_floats, set_title, suite_sets

SIDE, QUICK_SIDE = 4096, 512  # of the synthetic layer

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
DATA = click.Path(exists=True, path_type=Path)
peer_python = click.option(
    "--peer-python", default=sys.executable, help="Interpreter that the peers are installed for.  [this one]"
)
write_json = click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all rows there."
)


@click.group(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
def main() -> None:
    """Compare with the peers."""


@main.command()
@click.argument("files", nargs=-1, type=FILE, metavar="[MODEL]...")
@click.option("--suite", type=FOLDER, help="Models' folder.")
@click.option("--sparsity", default=0.9, show_default=True, help="Pruned fraction, for MODEL.")
@click.option("--values", default=31, show_default=True, help="Shared values of a tensor, for MODEL.")
@click.option("--effort", "efforts", default="6,9", show_default=True, help="Efforts of ours.")
@click.option("--rounds", default=9, show_default=True, help="Repetitions of each measurement.")
@click.option("--only", default="", help="Only sets with this in their title.")
@click.option("--quick", is_flag=True, help="A smaller synthetic layer, few repetitions.")
@peer_python
@write_json
def labels(
    files: tuple[Path, ...],
    suite: Path | None,
    sparsity: float,
    values: int,
    efforts: str,
    rounds: int,
    only: str,
    quick: bool,
    peer_python: str,
    json_file: Path | None,
) -> None:
    """Code the same labels exactly: bytes, encode and decode speed.

    Without MODEL or --suite, of a synthetic layer alone. MB/s count float32 weights. Ours is a whole .dcz
    file, from weights to weights; the peers get and return labels, without the look-up of values. To their
    bytes 4 a shared value are added ("nncodec" alone: none).
    """
    peers = Peers(peer_python)
    installed = peers.installed()
    threads = tuple(sorted({1, os.cpu_count() or 1}))
    effort = Effort(whole_numbers(efforts), threads, 3 if quick else rounds, 0.5 if quick else 3.0)
    side = QUICK_SIDE if quick else SIDE
    rows: list[Row] = []
    for one in _label_sets(files, suite, sparsity, values, side, only):
        some = measure_set(one, peers, installed, effort)
        print_set(one, some)
        rows += some
    print_summary(rows)
    write_rows(json_file, rows)


@main.command()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="MODEL...")
@click.option("--sqnr", default="10,15,20,25,30", show_default=True, help="SQNRs in dB.")
@click.option("--matrices", "alone", is_flag=True, help="Leave out biases, norms and other vectors.")
@click.option("--accuracy", type=DATA, help="CIFAR-10 test images; MODEL is ResNet-20.")
@click.option("--effort", "efforts", default="6,9", show_default=True, help="Efforts of ours.")
@click.option(
    "--lambda-scale", default=1.0, show_default=True, help="nncodec's weight of bits against error."
)
@peer_python
@write_json
def lossy(
    files: tuple[Path, ...],
    sqnr: str,
    alone: bool,
    accuracy: Path | None,
    efforts: str,
    lambda_scale: float,
    peer_python: str,
    json_file: Path | None,
) -> None:
    """Quantise the same weights: bytes at equal SQNR of all matrices and kernels, ours and nncodec's.

    Bytes are whole files of all float tensors, names, biases and norms too; bits per weight are those of the
    whole file per weight of matrices and kernels. What falls between two qps, or two steps, is interpolated.
    """
    peers = Peers(peer_python)
    nncodec = peers if "nncodec" in peers.installed() else None
    levels = whole_numbers(efforts)
    rows: list[Row] = []
    for path in files:
        weights = read_floats(path)
        if accuracy is not None:
            rows += measure_accuracy(weights, accuracy, nncodec, levels, lambda_scale)
        else:
            targets = sorted(float(one) for one in sqnr.split(","))
            kept = matrices(weights) if alone else weights
            rows += measure_sizes(path.stem, kept, nncodec, targets, levels, lambda_scale)
    write_rows(json_file, rows)


def whole_numbers(text: str) -> list[int]:
    """Return the numbers of an option like ``6,9``."""
    return [int(one) for one in text.split(",")]


def _label_sets(
    files: tuple[Path, ...], suite: Path | None, sparsity: float, values: int, side: int, only: str
) -> Iterator[LabelSet]:
    """Give the sets that the command line asks for, one at a time."""
    for path in files:
        yield make_set(set_title(path.stem, sparsity, values), matrices(read_floats(path)), sparsity, values)
    if suite is not None:
        yield from suite_sets(suite, side, only)
    elif not files:
        yield from suite_sets(FIXTURES, side, SYNTHETIC)


def write_rows(path: Path | None, rows: list[Row]) -> None:
    """Write all rows as JSON, if a file is named."""
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
