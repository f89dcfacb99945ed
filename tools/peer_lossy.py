"""The `lossy` tables of `peers.py`: bytes at equal SQNR, and accuracy against bytes, ours and NNCodec's."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peer_client import PeerError, Peers, Row, print_table
from peer_sets import FLOAT32, Weights, matrices
from peer_worker import decibels

from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint, TensorData

DECIBELS_PER_OCTAVE = 20 * math.log10(2)  # of the step size
MOST_TRIES = 8
TOLERANCE = 0.01  # dB
NNCODEC_QPS = range(-14, -28, -1)
ACCURACY_TARGETS = np.arange(9, 25, 1.0)
MOST_LOSS = 0.5  # points of accuracy

NNCODEC = "nncodec"


class Ours:
    """Files of ours for one model, at any SQNR.

    Parameters
    ----------
    weights : dict of str to ndarray of float32
        The model.
    effort : int
        From 1 to 9.
    """

    def __init__(self, weights: Weights, effort: int) -> None:
        tensors = {
            name: TensorData(FLOAT32, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint32))
            for name, array in weights.items()
        }
        self._weights = weights
        self._checkpoint = Checkpoint(tensors)
        self._effort = effort
        self._step = 0.0
        self.points: list[Row] = []

    def encode(self, step: float) -> bytes:
        """Return the file whose matrices and kernels are shared by rate with a step."""
        recipe = Recipe(step=step)
        return encode_checkpoint(self._checkpoint, recipe, effort=self._effort).to_bytes()

    def try_step(self, step: float) -> tuple[Row, Weights]:
        """Return the figures of one file, and the weights that it decodes to."""
        start = time.perf_counter()
        frame = self.encode(step)
        middle = time.perf_counter()
        decoded = open_frame(frame).read_all()
        end = time.perf_counter()
        weights = {name: data.words.view(np.float32).reshape(data.shape) for name, data in decoded.items()}
        row: Row = {
            "who": f"dcompress, effort {self._effort}",
            "step": step,
            "bytes": len(frame),
            "sqnr": decibels(list(self._weights.values()), [weights[name] for name in self._weights]),
            "encode_seconds": middle - start,
            "decode_seconds": end - middle,
        }
        self.points.append(row)
        return row, weights

    def reach(self, target: float, tolerance: float = TOLERANCE) -> tuple[Row, Weights]:
        """Return figures and weights of a file whose SQNR is within a tolerance of a target, in dB."""
        step = self._first_step(target)
        for _ in range(MOST_TRIES):
            row, weights = self.try_step(step)
            off = row["sqnr"] - target
            if abs(off) <= tolerance:
                break
            step *= 2 ** (off / DECIBELS_PER_OCTAVE)
        return row, weights

    def _first_step(self, target: float) -> float:
        """Return a step to start from: by the nearest file so far, or by the error of even rounding."""
        if self.points:
            near = min(self.points, key=lambda row: abs(float(row["sqnr"]) - target))
            return float(near["step"]) * 2 ** ((near["sqnr"] - target) / DECIBELS_PER_OCTAVE)
        arrays = matrices(self._weights).values()
        squares = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
        mean_square = squares / sum(array.size for array in arrays)
        return math.sqrt(12 * mean_square) * 10 ** (-target / 20)


def size_at(points: Sequence[Row], target: float) -> float:
    """Return the bytes at an SQNR: the logarithm between the two nearest points on a straight line.

    Examples
    --------
    >>> round(size_at([{"sqnr": 10.0, "bytes": 100}, {"sqnr": 12.0, "bytes": 400}], 11.0))
    200
    """
    ordered = sorted(points, key=lambda row: float(row["sqnr"]))
    sizes = [math.log(row["bytes"]) for row in ordered]
    return math.exp(np.interp(target, [row["sqnr"] for row in ordered], sizes))


def nncodec_points(
    weights: Weights, peers: Peers, targets: Sequence[float], lambda_scale: float
) -> list[Row]:
    """Return the figures of NNCodec at the qps around each SQNR; none, with a note, if it fails."""
    with peers.share(weights) as workplace:
        try:
            result = workplace.ask(task="lossy", targets=list(targets), lambda_scale=lambda_scale)
        except PeerError as error:
            print(f"nncodec failed: {error}")
            return []
    points: list[Row] = result["points"]
    return [{"who": NNCODEC} | point for point in points]


def measure_sizes(
    title: str,
    weights: Weights,
    peers: Peers | None,
    targets: Sequence[float],
    efforts: Sequence[int],
    lambda_scale: float = 1.0,
) -> list[Row]:
    """Print and return bytes and bits per weight at each SQNR.

    Parameters
    ----------
    title : str
        Name of the model.
    weights : dict of str to ndarray of float32
        Its float tensors.
    peers : Peers or None
        Where NNCodec is; None if it is not installed.
    targets : sequence of float
        SQNRs in dB, ascending.
    efforts : sequence of int
        Efforts of ours.
    lambda_scale : float
        NNCodec's weight of bits against error.
    """
    n_weights = sum(array.size for array in weights.values())
    n_matrices = sum(array.size for array in matrices(weights).values())
    points = {}
    if peers is not None:
        points[NNCODEC] = nncodec_points(weights, peers, targets, lambda_scale)
    for effort in efforts:
        ours = Ours(weights, effort)
        for target in targets:
            ours.reach(target)
        points[ours.points[0]["who"]] = ours.points
    points = {who: some for who, some in points.items() if some}
    rows = []
    columns = {"sqnr": "SQNR, dB g"}
    for target in targets:
        row: Row = {"sqnr": target, "model": title}
        for who, some in points.items():
            short = who.replace("dcompress, effort", "ours")
            row[f"{who} bytes"] = round(size_at(some, target))
            row[f"{who} bits"] = 8 * row[f"{who} bytes"] / n_matrices
            columns |= {f"{who} bytes": f"{short} bytes ,", f"{who} bits": "bits/weight .3f"}
            if who != NNCODEC and NNCODEC in points:
                row[f"{who} ratio"] = row[f"{who} bytes"] / row[f"{NNCODEC} bytes"]
                columns[f"{who} ratio"] = "/ nncodec .4f"
        rows.append(row)
    print_table(f"{title}: {n_weights:,} weights, {n_matrices:,} in matrices and kernels", rows, columns)
    speeds = _speeds(points, 4 * n_weights)
    print_table("Speed, median of those runs", speeds, SPEED_COLUMNS)
    return [*rows, *speeds]


SPEED_COLUMNS = {
    "who": "coder s",
    "encode_mb_s": "encode MB/s .3g",
    "encode_x": "x nncodec .3g",
    "decode_mb_s": "decode MB/s .4g",
    "decode_x": "x nncodec .3g",
}


def _speeds(points: dict[str, list[Row]], n_bytes: int) -> list[Row]:
    """Return encode and decode speed of each coder, in MB/s of float32 weights."""
    rows: list[Row] = []
    for who, some in points.items():
        row: Row = {"who": who}
        for step in ("encode", "decode"):
            seconds = [point[f"{step}_seconds"] for point in some[1:] or some]  # the first one compiles
            row[f"{step}_mb_s"] = n_bytes / float(np.median(seconds)) / 1e6
            if NNCODEC in points:
                base = rows[0] if rows else row
                row[f"{step}_x"] = row[f"{step}_mb_s"] / base[f"{step}_mb_s"]
        rows.append(row)
    return rows


def measure_accuracy(
    weights: Weights,
    data: Path,
    peers: Peers | None,
    efforts: Sequence[int],
    lambda_scale: float = 1.0,
) -> list[Row]:
    """Print and return accuracy and cross-entropy of ResNet-20 over bytes.

    Parameters
    ----------
    weights : dict of str to ndarray of float32
        Its state dict.
    data : Path
        Test images, see `resnet20.load_images`.
    peers, efforts, lambda_scale
        As in `measure_sizes`.
    """
    from resnet20 import evaluate, load_images  # the only part that needs torch

    images = load_images(data)

    def judged(row: Row, decoded: Weights) -> Row:
        accuracy, cross_entropy = evaluate(decoded, images)
        return row | {"accuracy": accuracy, "cross_entropy": cross_entropy}

    n_bytes = sum(array.nbytes for array in weights.values())
    rows = [judged({"who": "dense", "bytes": n_bytes}, weights)]
    if peers is not None:
        with peers.share(weights) as workplace:
            qps = list(NNCODEC_QPS)
            result = workplace.ask(task="lossy", qps=qps, lambda_scale=lambda_scale, keep=True)
            rows += [
                judged({"who": NNCODEC} | point, workplace.decoded(point["qp"])) for point in result["points"]
            ]
    for effort in efforts:
        ours = Ours(weights, effort)
        rows += [judged(*ours.reach(float(target), 0.1)) for target in ACCURACY_TARGETS]
    print_table(f"ResNet-20 on {len(images.labels):,} test images", rows, ACCURACY_COLUMNS)
    good = [row for row in rows[1:] if row["accuracy"] >= rows[0]["accuracy"] - MOST_LOSS]
    smallest = [
        min((row for row in good if row["who"] == who), key=lambda row: int(row["bytes"]))
        for who in dict.fromkeys(row["who"] for row in good)
    ]
    print_table(f"Smallest within {MOST_LOSS} points of the dense network", smallest, ACCURACY_COLUMNS)
    return rows


ACCURACY_COLUMNS = {
    "who": "coder s",
    "qp": "qp d",
    "bytes": "bytes ,",
    "sqnr": "SQNR, dB .2f",
    "accuracy": "accuracy, % .2f",
    "cross_entropy": "cross-entropy .4f",
}
