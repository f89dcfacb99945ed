"""The picture of a sensitivity scan. matplotlib, an optional extra, is imported where it is used."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcompress.atomic import atomic_writer
from dcompress.errors import EncodeError

if TYPE_CHECKING:
    from dcompress.train.sensitivity import Sensitivity

__all__ = ["draw"]

_METADATA: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_GREY = "#6b7280"


def draw(scan: Sensitivity, path: str | os.PathLike[str], title: str, overwrite: bool) -> None:
    """Write the picture of a scan; its suffix says what kind.

    Parameters
    ----------
    scan : Sensitivity
        What to draw: a line for each tensor, on the left against sparsity, on the right against bits.
    path : path-like
        Ends with .png, .svg or .pdf.
    title : str
        Above the picture.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    EncodeError
        The suffix is that of no picture.
    ImportError
        matplotlib is not installed.
    """
    kind = Path(path).suffix.lower()[1:]
    if kind not in _METADATA:
        raise EncodeError(
            f"{os.fspath(path)!r}: the name must end with {', '.join('.' + one for one in _METADATA)}"
        )
    if find_spec("matplotlib") is None:
        raise ImportError("a plot needs matplotlib: pip install 'dcompress[plot]'")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Text stays text in an SVG, and the same scan gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dcompress", "font.size": 10}):
        kinds = [one for one in ("sparsity", "bits") if any(point.kind == one for point in scan.points)]
        figure = Figure(figsize=(1.5 + 4.5 * len(kinds), 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, one in zip(panels, kinds, strict=True):
            _draw_panel(axes, scan, one)
        panels[0].set_ylabel("metric")
        panels[-1].legend(frameon=False, fontsize=8)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        with atomic_writer(path, overwrite=overwrite) as stream:
            figure.savefig(stream, format=kind, dpi=150, metadata=_METADATA[kind])


def _draw_panel(axes: Any, scan: Sensitivity, kind: str) -> None:
    """Draw one side."""
    for place, name in enumerate(scan.names):
        points = sorted((p.amount, p.metric) for p in scan.points if p.name == name and p.kind == kind)
        points = [(amount, metric) for amount, metric in points if math.isfinite(metric)]
        color = f"C{place % 10}"
        x, y = [one for one, _ in points], [one for _, one in points]
        axes.plot(x, y, "-o", color=color, markersize=4, linewidth=1.6, label=name)
    axes.axhline(scan.baseline, color=_GREY, linestyle="--", linewidth=1.2)
    axes.set_xlabel("sparsity of this tensor alone" if kind == "sparsity" else "bits of this tensor alone")
    axes.set_xticks(sorted({point.amount for point in scan.points if point.kind == kind}))
    if kind == "bits":
        axes.invert_xaxis()  # to the right there is less
    axes.grid(True, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
