"""What `calibration_curve.py` makes of its rows: tables, bytes at equal quality, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer_client import Row, print_table

DENSE, NNCODEC = "dense", "nncodec"
METHODS = (NNCODEC, "no data", "calibrated", "layer by layer")
MOST_LOST = 0.5  # points of accuracy
KL_LEVELS = tuple(float(f"{head}e{power}") for power in range(-6, 1) for head in (1, 2, 5))
WORST_KL = 1.0  # in the picture
LOST = (0.1, 0.2, 0.5, 1.0, 2.0)  # points of accuracy
WORSE = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)  # cross-entropies, by that of the dense network
COLUMNS = {
    "who": "coder s",
    "setting": "setting s",
    "bytes": "bytes ,",
    "accuracy": "accuracy, % .2f",
    "cross_entropy": "cross-entropy .4f",
    "kl": "KL .5f",
    "seconds": "seconds .1f",
}
COLOURS = dict(zip(METHODS, ("#6b7280", "#c98a1b", "#4c9f70", "#1f5fa8"), strict=True))
NAMES = {
    NNCODEC: "NNC (nncodec)",
    "no data": "dcompress, no data",
    "calibrated": "calibrated",
    "layer by layer": "calibrated layer by layer",
}


def front(rows: Sequence[Row], key: str) -> list[Row]:
    """Return the rows that no other row beats in both bytes and a figure (less is better), by bytes.

    Examples
    --------
    >>> rows = [{"bytes": 9, "kl": 0.1}, {"bytes": 5, "kl": 0.3}, {"bytes": 7, "kl": 0.4}]
    >>> [row["bytes"] for row in front(rows, "kl")]
    [5, 9]
    """
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (int(row["bytes"]), float(row[key]))):
        if not kept or row[key] < kept[-1][key]:
            kept.append(row)
    return kept


def bytes_at(rows: Sequence[Row], key: str, level: float) -> float | None:
    """Return the bytes at which a curve reaches a figure, on straight lines between logarithms.

    Parameters
    ----------
    rows : sequence of dict
        Of one coder; only those of the `front` count.
    key : str
        The figure.
    level : float
        Above 0.

    Returns
    -------
    n_bytes : float or None
        None where the curve does not go: no worse file and no better one.

    Examples
    --------
    >>> rows = [{"bytes": 100, "kl": 0.1}, {"bytes": 400, "kl": 0.001}]
    >>> round(bytes_at(rows, "kl", 0.01)), bytes_at(rows, "kl", 0.2)
    (200, None)
    """
    kept = [row for row in front(rows, key) if row[key] > 0][::-1]  # ascending in the figure
    if not kept or not kept[0][key] <= level <= kept[-1][key]:
        return None
    levels, sizes = ([math.log(row[name]) for row in kept] for name in (key, "bytes"))
    return math.exp(np.interp(math.log(level), levels, sizes))


def of(rows: Sequence[Row], who: str) -> list[Row]:
    """Return the rows of one coder."""
    return [row for row in rows if row["who"] == who]


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Print all figures; of nncodec those only that are on the front of either figure."""
    dense, best = of(rows, DENSE), of(rows, NNCODEC)
    shown = [row for row in best if row in front(best, "kl") or row in front(best, "cross_entropy")]
    laid_out = dense + sorted(shown, key=_n_bytes)
    for who in METHODS[1:]:
        laid_out += sorted(of(rows, who), key=_n_bytes)
    print_table(title, laid_out, COLUMNS)


def smallest(rows: Sequence[Row]) -> list[Row]:
    """Return the smallest file of each coder that loses at most half a point of accuracy."""
    (dense,) = of(rows, DENSE)
    good = [row for row in rows if row["accuracy"] >= dense["accuracy"] - MOST_LOST]
    return [min(of(good, who), key=_n_bytes) for who in METHODS if of(good, who)]


def print_smallest(rows: Sequence[Row]) -> None:
    """Print them."""
    print_table(f"Smallest within {MOST_LOST} points of the dense network", smallest(rows), COLUMNS)


def levels_of(rows: Sequence[Row], key: str) -> list[Row]:
    """Return, for levels of a figure, the bytes of each coder and ours as a part of nncodec's.

    Levels of "kl" are round; those of "cross_entropy" are multiples of the dense network's, and those of
    "error", in percent, what comes on top of the dense network's.
    """
    (dense,) = of(rows, DENSE)
    if key == "kl":
        named = [(level, f"{level:g}") for level in KL_LEVELS]
    elif key == "error":
        rows = [row | {"error": 100 - row["accuracy"]} for row in rows]
        named = [(100 - dense["accuracy"] + lost, f"{lost:g} points lost") for lost in LOST]
    else:
        named = [(worse * dense[key], f"{worse * dense[key]:.4f} ({worse:g} x)") for worse in WORSE]
    result = []
    for level, text in named:
        found = {who: bytes_at(of(rows, who), key, level) for who in METHODS}
        if sum(value is not None for value in found.values()) < 2:
            continue
        row: Row = {"level": text}
        for who, value in found.items():
            if value is not None:
                row[who] = round(value)
                if who != NNCODEC and found[NNCODEC] is not None:
                    row[f"{who} ratio"] = value / found[NNCODEC]
        result.append(row)
    return result


def print_levels(rows: Sequence[Row], key: str) -> None:
    """Print bytes at equal "kl", "cross_entropy" or "error"."""
    columns = {"level": f"{key.replace('_', '-')} s", NNCODEC: "nncodec ,"}
    for who in METHODS[1:]:
        if of(rows, who):
            columns |= {who: f"{who} ,", f"{who} ratio": "/ nncodec .3f"}
    print_table("Bytes at equal quality, between the files measured", levels_of(rows, key), columns)


def draw(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draw accuracy and KL over bytes.

    Parameters
    ----------
    path : Path
        Picture to write; its suffix says what kind.
    title : str
        The network.
    rows : sequence of dict
        Of one network.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Text stays text in an SVG, and the same rows give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dcompress", "font.size": 10}):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _draw(left, rows, "accuracy")
        _draw(right, rows, "kl")
        (dense,) = of(rows, DENSE)
        left.axhline(dense["accuracy"], color="#9ca3af", linestyle="--", linewidth=1.2)
        left.annotate(
            "dense",
            (0.01, dense["accuracy"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=9,
            color="#6b7280",
        )
        drawn = [row["accuracy"] for row in rows if row["kl"] <= WORST_KL]
        left.set_ylim(bottom=max(min(drawn) - 0.5, dense["accuracy"] - 8), top=max(drawn) + 0.5)
        left.set_ylabel("accuracy on test images, %")
        right.set_yscale("log")
        right.set_ylabel("KL divergence from the dense network")
        left.legend(loc="lower right", frameon=False, fontsize=9)
        figure.suptitle(f"{title}: quality against the size of the file", x=0.01, ha="left", weight="bold")
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)


def _draw(axes: Any, rows: Sequence[Row], key: str) -> None:
    """Draw one curve for each coder: the front by KL."""
    for who in METHODS:
        points = [row for row in front(of(rows, who), "kl") if row["kl"] <= WORST_KL]
        if points:
            sizes = [row["bytes"] / 1000 for row in points]
            style = {"linewidth": 2, "markersize": 4, "color": COLOURS[who], "label": NAMES[who]}
            axes.plot(sizes, [row[key] for row in points], "-o", **style)
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("whole file, kB")


def _n_bytes(row: Row) -> int:
    return int(row["bytes"])
