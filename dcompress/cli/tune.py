"""``dcz tune``: how small a model gets at which error, as a table, as JSON and as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcompress.cli.options import (
    force_option,
    print_json,
    print_lines,
    quiet_option,
    terminal_width,
    threads_option,
    verbose_option,
)
from dcompress.cli.recipes import make_recipe, recipe_options
from dcompress.cli.session import Session
from dcompress.cli.targets import asked_effort, effort_option, watch_trials

if TYPE_CHECKING:
    from dcompress.curve import Curve
    from dcompress.step_search import Figures

__all__ = ["tune"]

_EXACT, _NEAR = 0.05, 0.35  # dB that a point may be off: where it was named, and where any will do
_MOST_POINTS = 100

_HELP = """Show how the size of MODEL's file depends on its quality, before you choose a target.

Encodes the model again and again with coarser and finer steps, and writes no .dcz file. Quality is the SQNR
of all matrices and kernels together, bits/weight the bits of the whole file for each of their weights. To
compare with, the table ends with preset balanced and with no loss at all.
"""
_EPILOG = """\b
Examples:
  dcz tune model.safetensors
  dcz tune model.pt -1 --from 10 --to 30 --points 11 --plot curve.svg
  dcz tune model.pt --quality 15,20,25 --json - | jq '.points[].file_bytes'
"""


def _qualities(_: click.Context, __: click.Parameter, value: str | None) -> list[float] | None:
    """Return the numbers of a list, parted by commas."""
    if value is None:
        return None
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers: write it like 10,15,20") from None
    if not all(0 < number < math.inf for number in numbers):
        raise click.BadParameter("every quality must be above 0")
    return numbers


def _picture(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Return the path of a picture, if its suffix is that of one and it can be drawn."""
    if value is not None:
        from dcompress.cli.plot import check_plot

        check_plot(value)
    return value


@click.command(short_help="Show size against quality for a model.", help=_HELP, epilog=_EPILOG)
@click.argument("model")
@click.option("--from", "low", type=float, default=8.0, metavar="DB", help="Lowest quality.  [default: 8]")
@click.option("--to", "high", type=float, default=40.0, metavar="DB", help="Highest quality.  [default: 40]")
@click.option(
    "--points",
    "n_points",
    type=click.IntRange(1, _MOST_POINTS),
    default=9,
    metavar="N",
    help="How many, evenly spread.  [default: 9]",
)
@click.option(
    "--quality",
    "qualities",
    metavar="DB,DB,...",
    callback=_qualities,
    help="These qualities instead, met within 0.05 dB.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write the figures as JSON; - for stdout.")
@click.option(
    "--plot",
    "plot_path",
    metavar="FILE.png",
    callback=_picture,
    help="Draw the curve: .png, .svg or .pdf. Needs matplotlib.",
)
@recipe_options
@effort_option
@threads_option
@force_option
@quiet_option
@verbose_option("Say what each trial came to.")
@click.pass_obj
def tune(
    session: Session,
    model: str,
    low: float,
    high: float,
    n_points: int,
    qualities: list[float] | None,
    json_path: str | None,
    plot_path: str | None,
    preset: str | None,
    profile: str | None,
    recipe_file: str | None,
    sets: tuple[str, ...],
    excludes: tuple[str, ...],
    sparsity: float | None,
    threads: int,
    force: bool,
) -> None:
    """Show size against quality for a model."""
    from dcompress.cli.options import check_target
    from dcompress.curve import spread, trace_curve
    from dcompress.model_file import read_checkpoint
    from dcompress.step_search import Search

    if not 0 < low <= high < math.inf:
        raise click.UsageError(f"--from {low:g} --to {high:g} is no range: both above 0, the lower one first")
    if model == "-":
        raise click.UsageError("a model cannot be read from standard input: name a file")
    recipe = make_recipe(recipe_file, preset, sets, excludes, sparsity, profile=profile)
    effort = asked_effort(click.get_current_context())
    with session.working_on(model):
        Path(model).stat()
    for path in (json_path, plot_path):
        if path not in (None, "-"):
            check_target(session, model, path, force)
    with session.working_on(model):
        checkpoint = read_checkpoint(model)
        for note in checkpoint.notes:
            session.note(note)
        n_bytes = sum(
            data.n_bytes for name, data in checkpoint.tensors.items() if name not in checkpoint.ties
        )
        watch = watch_trials(session, "tuning", n_bytes)
        search = Search(checkpoint, recipe, effort=effort, threads=threads, watch=watch)
        wanted = qualities or spread(low, high, n_points)
        curve = trace_curve(search, wanted, _NEAR if qualities is None else _EXACT)
    for trial in search.trials.values():
        session.detail(f"step {trial.step:g}: {trial.sqnr:.2f} dB, {trial.n_bytes:,} bytes")
    if curve.missed:
        missed = ", ".join(f"{quality:g}" for quality in curve.missed)
        session.note(f"no step comes near to {missed} dB")
    content = _to_dict(model, effort, recipe.to_dict(), curve)
    if json_path not in (None, "-"):
        _write_json(session, json_path, content, force)
    if plot_path is not None:
        from dcompress.cli.plot import draw_curve

        with session.writing_to(plot_path):
            draw_curve(plot_path, Path(model).name, curve, force)
    if json_path == "-":
        print_json(content)
    elif not session.quiet:
        print_lines(_lines(curve, terminal_width()))


def _lines(curve: Curve, width: int | None) -> list[str]:
    """Return the table of a curve."""
    from dcompress.cli.table import Column, layout_table
    from dcompress.cli.tables import decibels

    rows = [*curve.points, curve.balanced, curve.lossless]
    names = [f"{point.sqnr:.2f} dB" for point in curve.points] + ["balanced", "lossless"]
    columns = [
        Column("quality", names),
        Column("bytes", [f"{row.n_bytes:,}" for row in rows]),
        Column("ratio", [f"{row.ratio:.2f}" for row in rows]),
        Column("bits/weight", [f"{row.bits_per_weight:.2f}" for row in rows]),
        Column("step", [f"{row.step:g}" if math.isfinite(row.step) else decibels(row.sqnr) for row in rows]),
    ]
    return layout_table(columns, width)


def _to_dict(model: str, effort: int, recipe: dict[str, Any], curve: Curve) -> dict[str, Any]:
    """Return a curve as plain JSON values."""
    return {
        "model": model,
        "effort": effort,
        "recipe": {"preset": "balanced"} | recipe,
        "points": [_row(point) for point in curve.points],
        "balanced": _row(curve.balanced),
        "lossless": _row(curve.lossless),
    }


def _row(figures: Figures) -> dict[str, Any]:
    """Return figures as plain JSON values; null stands for infinite, and for what does not apply."""
    from dcompress.report import finite

    return {
        "sqnr_db": finite(figures.sqnr),
        "file_bytes": figures.n_bytes,
        "ratio": figures.ratio,
        "bits_per_matrix_weight": finite(figures.bits_per_weight),
        "step": finite(figures.step),
    }


def _write_json(session: Session, path: str, content: dict[str, Any], force: bool) -> None:
    """Write JSON to a file."""
    import json

    from dcompress.atomic import atomic_writer

    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with session.writing_to(path), atomic_writer(path, overwrite=force) as stream:
        stream.write(text.encode())
