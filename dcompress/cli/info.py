"""``dcz info``: what is in a ``.dcz`` file, its payload untouched."""

from __future__ import annotations

import click

from dcompress.cli.options import (
    json_option,
    open_reader,
    print_json,
    print_lines,
    terminal_width,
    verbose_option,
)
from dcompress.cli.session import Session

__all__ = ["info"]

_HELP = """Show what is in FILE (.dcz) without decoding it.

Sizes, metadata, and one row a tensor; how it was compressed and the error (SQNR) too, if the file has a
receipt. Density and centroids are those that the directory states: a tensor coded without zero runs shows
no density, and may count zero as a centroid. FILE may be - for stdin.
"""
_EPILOG = """\b
Examples:
  dcz info model.dcz
  dcz info model.dcz --json | jq '.tensors[] | [.name, .bits_per_weight]'
"""


@click.command(short_help="Show what is in a .dcz file, without decoding it.", help=_HELP, epilog=_EPILOG)
@click.argument("file")
@json_option
@verbose_option("List every tensor.")
@click.pass_obj
def info(session: Session, file: str, as_json: bool) -> None:
    """Show what is in a frame."""
    from dcompress.cli.table import printable
    from dcompress.cli.tables import describe_recipe, report_lines, summary_lines
    from dcompress.inspection import read_receipt
    from dcompress.report import Outcome, report_directory

    with open_reader(session, file) as reader:
        directory = reader.directory
        receipt = read_receipt(reader)
    outcomes = {}
    if receipt is not None:
        outcomes = {name: Outcome(receipt.sqnr(name)) for name in directory.tensors}
    report = report_directory(directory, outcomes, receipt.recipe if receipt is not None else None)
    if as_json:
        print_json({"file": file, **report.to_dict()})
        return
    sections = "".join(f", {name} {n_bytes:,}" for name, n_bytes in report.sections.items())
    payload = report.file_bytes - report.head_bytes - report.table_bytes - sum(report.sections.values())
    tables = f", tables {report.table_bytes:,}" if report.table_bytes else ""
    lines = [
        f"format {report.version}: head {report.head_bytes:,} bytes{tables}, tensors {payload:,}{sections}",
    ]
    if report.recipe is not None:
        lines.append(f"recipe: {describe_recipe(report.recipe)}")
    lines += [f"metadata: {printable(key)} = {printable(value)}" for key, value in report.metadata.items()]
    lines += report_lines(report, terminal_width(), every=session.verbose)
    print_lines(lines + summary_lines(report))
