"""``dcz compare``: two models, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from dcompress.cli.options import (
    json_option,
    limit_option,
    open_model,
    print_json,
    print_lines,
    quiet_option,
    terminal_width,
    threads_option,
    verbose_option,
)
from dcompress.cli.session import USAGE_ERROR, Session

if TYPE_CHECKING:
    from dcompress.compare import Difference
    from dcompress.stages import Checkpoint

__all__ = ["compare"]

_HELP = """Compare two models in any readable format: .dcz, .safetensors, .pt, .npz.

Tensors are identical if dtype, shape and every bit are the same. For the others the largest absolute error
and the signal to noise ratio are shown, A being the reference. Order, metadata and ties are not compared.
One of the two may be -, a .dcz file on stdin.

The exit code is that of diff and cmp: 0 if all tensors are identical, 1 if any differs or is missing, and
2 or more if there was trouble (3 a damaged file, 4 an unsupported one, 5 a limit).
"""
_EPILOG = """\b
Examples:
  dcz compare model.safetensors model.dcz
  dcz compare before.pt after.pt --json
  dcz compare -q a.dcz b.dcz && echo identical
"""


@dataclass(frozen=True)
class _Row:
    """One name of either model."""

    name: str
    shape: tuple[int, ...]
    status: str
    difference: Difference | None = None

    @property
    def identical(self) -> bool:
        return self.difference is not None and self.difference.identical


@click.command(short_help="Compare two models, tensor by tensor.", help=_HELP, epilog=_EPILOG)
@click.argument("a")
@click.argument("b")
@json_option
@threads_option
@limit_option
@quiet_option
@verbose_option("List every tensor.")
@click.pass_obj
def compare(session: Session, a: str, b: str, as_json: bool, threads: int, max_output: int | None) -> int:
    """Compare two models; return the exit code."""
    session.io_exit_code = USAGE_ERROR
    if a == b == "-":
        raise click.UsageError("only one of the two can be standard input")
    with (
        open_model(session, a, max_output=max_output, threads=threads) as first,
        open_model(session, b, max_output=max_output, threads=threads) as second,
    ):
        rows = _compare(session, (a, first), (b, second))
    same = all(row.identical for row in rows)
    if as_json:
        print_json({"a": a, "b": b, "identical": same, "tensors": [_to_dict(row) for row in rows]})
    elif not session.quiet:
        print_lines(_lines(rows, terminal_width(), every=session.verbose))
    return 0 if same else 1


def _compare(session: Session, a: tuple[str, Checkpoint], b: tuple[str, Checkpoint]) -> list[_Row]:
    """Return a row for each name, those of the first model first."""
    from dcompress.compare import compare_tensors
    from dcompress.stages import tensor_specs

    (path_a, first), (path_b, second) = a, b
    specs, others = tensor_specs(first.tensors), tensor_specs(second.tensors)
    n_bytes = sum(math.prod(shape) * dtype.element_bytes for dtype, shape in specs.values())
    rows = []
    with session.progress("comparing", n_bytes) as progress:
        for name, (dtype, shape) in specs.items():
            if name not in others:
                rows.append(_Row(name, shape, "only in A"))
                continue
            if shape != others[name][1]:
                rows.append(_Row(name, shape, f"shape {_shape(others[name][1])} in B"))
                continue
            with session.working_on(path_a):
                x = first.tensors[name]
            with session.working_on(path_b):
                y = second.tensors[name]
            difference = compare_tensors(x, y)
            status = "identical"
            if dtype != others[name][0]:
                status = f"{dtype.name} in A, {others[name][0].name} in B"
            elif not difference.identical:
                status = "differs" if difference.n_different else "other bits, equal values"
            rows.append(_Row(name, shape, status, difference))
            if progress is not None:
                progress(x.n_bytes)
    rows += [_Row(name, shape, "only in B") for name, (_, shape) in others.items() if name not in specs]
    return rows


def _shape(shape: tuple[int, ...]) -> str:
    from dcompress.cli.tables import shape_text

    return shape_text(shape)


def _lines(rows: list[_Row], width: int | None, *, every: bool) -> list[str]:
    """Return the table; where there are many tensors, identical ones are one line."""
    from dcompress.cli.table import Column, layout_table, printable
    from dcompress.cli.tables import decibels, fold_small

    if not rows:
        return ["identical: both have no tensors"]
    shown, folded = fold_small(rows, lambda row: row.identical, every)
    lines = []
    if shown:
        measured = [row.difference if _is_measured(row) else None for row in shown]
        columns = [
            Column("tensor", [printable(row.name) for row in shown], right=False),
            Column("shape", [_shape(row.shape) for row in shown], drop=2),
            Column("max error", [f"{d.max_error:.3g}" if d else "" for d in measured]),
            Column("SQNR", [decibels(d.sqnr) if d else "" for d in measured]),
            Column("changed", [f"{d.n_different:,}" if d else "" for d in measured], drop=1),
            Column("result", [row.status for row in shown], right=False),
        ]
        lines = layout_table(columns, width)
    if folded:
        lines.append(f"+ {len(folded)} identical tensors (-v lists them)")
    n_other = sum(not row.identical for row in rows)
    lines.append(
        f"identical: {len(rows)} tensors" if n_other == 0 else f"{n_other} of {len(rows)} tensors differ"
    )
    return lines


def _is_measured(row: _Row) -> bool:
    """Return whether the values were set against each other."""
    return row.difference is not None and row.difference.comparable


def _to_dict(row: _Row) -> dict[str, Any]:
    """Return a row as plain JSON values; null stands for infinite, and for what does not apply."""
    from dcompress.report import finite

    content: dict[str, Any] = {
        "name": row.name,
        "shape": list(row.shape),
        "identical": row.identical,
        "status": row.status,
    }
    if row.difference is not None and row.difference.comparable:
        content |= {
            "n_different": row.difference.n_different,
            "max_error": finite(row.difference.max_error),
            "sqnr_db": finite(row.difference.sqnr),
        }
    return content
