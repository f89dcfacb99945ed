"""The picture of ``dcz tune``. matplotlib, an optional extra, is imported where it is used."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dcompress.curve import Curve

__all__ = ["check_plot", "draw_curve"]

_SUFFIXES = (".png", ".svg", ".pdf")
_BLUE, _GREY, _RED = "#1f5fa8", "#6b7280", "#b4431f"
_MOST_LABELS = 13  # that fit side by side
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def check_plot(path: str) -> None:
    """Check, before any work, that a picture can be drawn.

    Raises
    ------
    BadParameter
        Its suffix is that of no picture.
    ClickException
        matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise click.BadParameter(f"{path!r}: the name must end with {', '.join(_SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise click.ClickException("--plot needs matplotlib: pip install 'dcompress[plot]'")


def draw_curve(path: str, title: str, curve: Curve, overwrite: bool) -> None:
    """Write the picture of a curve; its suffix says what kind.

    Parameters
    ----------
    path : str
        Where to write.
    title : str
        Above the picture: the model.
    curve : Curve
        What to draw.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dcompress.atomic import atomic_writer

    # Text stays text in an SVG, and the same curve gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dcompress", "font.size": 10}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(axes, title, curve)
        kind = Path(path).suffix.lower()[1:]
        metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        with atomic_writer(path, overwrite=overwrite) as stream:
            figure.savefig(stream, format=kind, dpi=150, metadata=metadata)


def size_text(n_bytes: float) -> str:
    """Return a size in three digits.

    Examples
    --------
    >>> size_text(81234), size_text(1724320), size_text(950)
    ('81.2 kB', '1.72 MB', '950 B')
    """
    unit, name = next((unit for unit in _UNITS if n_bytes >= 0.9995 * unit[0]), _UNITS[-1])
    number = n_bytes / unit
    digits = max(0, 2 - math.floor(math.log10(max(number, 1)) + 1e-9)) if unit > 1 else 0
    return f"{number:.{digits}f} {name}"


def _tick_text(n_bytes: float, _: object) -> str:
    """Return a round size: 50 kB, not 50.0 kB."""
    number, unit = size_text(n_bytes).split()
    return f"{float(number):g} {unit}"


def _draw(axes: Any, title: str, curve: Curve) -> None:
    """Draw curve, labels and what to compare with."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    points = curve.points
    x, y = [point.sqnr for point in points], [point.n_bytes for point in points]
    axes.plot(x, y, "-o", color=_BLUE, linewidth=2, markersize=5.5, zorder=3)
    least_gap = (max(x) - min(x)) / _MOST_LABELS if x else 0.0
    labelled = -math.inf
    for point in points:
        if point.sqnr < labelled + least_gap:
            continue
        labelled = point.sqnr
        axes.annotate(
            f"{size_text(point.n_bytes)}\n{point.bits_per_weight:.2f} bits",
            (point.sqnr, point.n_bytes),
            xytext=(-5, 8),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=_BLUE,
            zorder=4,
        )
    lossless, balanced = curve.lossless, curve.balanced
    axes.axhline(lossless.n_bytes, color=_GREY, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"lossless: {size_text(lossless.n_bytes)}",
        (0.01, lossless.n_bytes),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=9,
        color=_GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
    if math.isfinite(balanced.sqnr):
        words = f"preset balanced: {size_text(balanced.n_bytes)}, {balanced.sqnr:.1f} dB"
        axes.plot(balanced.sqnr, balanced.n_bytes, "D", color=_RED, markersize=7, zorder=3, label=words)
        axes.legend(loc="lower right", frameon=False, labelcolor=_RED, fontsize=9, handletextpad=0.3)
    sizes = [*y, lossless.n_bytes, balanced.n_bytes]
    axes.margins(x=0.08)
    axes.set_yscale("log")
    axes.set_ylim(min(sizes) / 1.35, max(sizes) * 1.35)
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick_text))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("quality: SQNR of all matrices and kernels together, in dB")
    axes.set_ylabel("size of the .dcz file, and its bits per weight")
    axes.set_title(title, loc="left", fontweight="bold")
