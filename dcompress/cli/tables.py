"""The tables of ``dcz encode`` and ``dcz info``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from dcompress.cli.table import Column, layout_table, printable
from dcompress.report import FileReport, TensorRow

__all__ = ["decibels", "describe_recipe", "fold_small", "report_lines", "shape_text", "summary_lines"]

_MANY = 40  # rows, beyond which small tensors are folded into one
_SMALL_BYTES = 1 << 14


def report_lines(report: FileReport, width: int | None, *, every: bool) -> list[str]:
    """Return the table of a frame, one row a tensor.

    Parameters
    ----------
    report : FileReport
        The frame.
    width : int or None
        Characters a line; None if there is no limit.
    every : bool
        Whether small lossless tensors get a row each, however many they are.
    """
    rows, folded = fold_small(report.rows, _is_small, every)
    if not report.rows:
        return ["no tensors"]
    columns = [
        Column("tensor", [printable(row.name) for row in rows], right=False),
        Column("shape", [shape_text(row.shape) for row in rows], drop=5),
        Column("dtype", [row.dtype for row in rows], right=False, drop=2),
        Column("density", [_cell(row, _density(row)) for row in rows], drop=4),
        Column("centroids", [_cell(row, _number(row.n_centroids)) for row in rows], drop=3),
        Column("bits/weight", [_cell(row, f"{row.bits_per_weight:.2f}") for row in rows], drop=6),
        Column("SQNR", [_cell(row, decibels(row.sqnr)) for row in rows]),
        Column("bytes", ["tied" if row.alias_of is not None else f"{row.stored_bytes:,}" for row in rows]),
        Column("coder", [_coder(row) for row in rows], right=False, drop=1),
    ]
    if any(row.plan for row in rows):
        columns.append(Column("plan", [row.plan for row in rows], right=False))
        columns = [column for column in columns if column.title not in ("coder", "dtype")]
    if all(row.sqnr is None for row in report.stored):
        columns = [column for column in columns if column.title != "SQNR"]
    lines = layout_table(columns, width) if rows else []
    if folded:
        stored = sum(row.stored_bytes for row in folded)
        n_weights = sum(row.n_weights for row in folded)
        lines.append(
            f"+ {len(folded)} small tensors, lossless: {n_weights:,} weights, {stored:,} bytes "
            "(-v lists them)"
        )
    return lines


def summary_lines(report: FileReport) -> list[str]:
    """Return the totals of a frame."""
    n_tensors = len(report.rows)
    return [
        f"{n_tensors:,} tensor{'' if n_tensors == 1 else 's'}, {report.n_weights:,} weights, "
        f"{report.bits_per_weight:.2f} bits/weight",
        f"{report.decoded_bytes:,} -> {report.file_bytes:,} bytes, ratio {report.ratio:.2f}",
    ]


def describe_recipe(recipe: dict[str, Any]) -> str:
    """Return a recipe in one line: its preset, then what changes it."""
    words = [str(recipe.get("preset", "balanced"))]
    words += [
        f"{key} {recipe[key]}" for key in ("sparsity", "bits", "step", "slope", "states") if key in recipe
    ]
    rules = recipe.get("rule", [])
    for rule in rules if isinstance(rules, list) else []:
        if isinstance(rule, dict):
            settings = ",".join(f"{key}={value}" for key, value in rule.items() if key != "pattern")
            words.append(f"set {rule.get('pattern')}:{settings}")
    excludes = recipe.get("exclude")
    if excludes:
        excludes = excludes if isinstance(excludes, list) else [excludes]
        words.append("exclude " + " ".join(str(pattern) for pattern in excludes))
    return printable("; ".join(words))


def fold_small(
    rows: Sequence[Any], is_small: Callable[[Any], bool], every: bool
) -> tuple[list[Any], list[Any]]:
    """Return the rows to show, and those to sum up in one line: none unless there are many."""
    if every or len(rows) <= _MANY:
        return list(rows), []
    folded = [row for row in rows if is_small(row)]
    if len(folded) < 2:
        return list(rows), []
    return [row for row in rows if not is_small(row)], folded


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape for people."""
    return "x".join(str(size) for size in shape) or "scalar"


def decibels(sqnr: float | None) -> str:
    """Return a signal to noise ratio for people."""
    if sqnr is None or math.isnan(sqnr):
        return "-"
    return "exact" if sqnr == math.inf else f"{round(sqnr, 1) + 0.0:.1f} dB"  # never -0.0


def _is_small(row: TensorRow) -> bool:
    lossless = row.sqnr == math.inf or (row.sqnr is None and row.n_centroids is None)
    return lossless and row.alias_of is None and row.decoded_bytes <= _SMALL_BYTES


def _cell(row: TensorRow, text: str) -> str:
    return "" if row.alias_of is not None else text


def _density(row: TensorRow) -> str:
    """Return the density, where a tensor has a label for zero, or was changed; `dcz info` knows no other."""
    if row.density is None:
        return "-"
    has_zero = row.n_centroids is not None and row.density < 1
    changed = row.sqnr is not None and row.sqnr != math.inf
    return f"{100 * row.density:.1f} %" if has_zero or changed else "-"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _coder(row: TensorRow) -> str:
    return row.coder if row.alias_of is None else f"= {printable(row.alias_of)}"
