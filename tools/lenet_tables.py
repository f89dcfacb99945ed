"""The paper's tables beside ours: by layer density, bits and bytes, and totals by stage."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lenet_networks import Network
from lenet_runs import Outcome

from dcompress.train import TensorMetrics

DASH = "-"


@dataclass(frozen=True)
class PaperLayer:
    """A row of table 2 or 3 of Han et al. 2016; percentages are of the float32 bytes.

    Attributes
    ----------
    density : float
        Percent.
    label_bits, gap_bits : int
        Of P+Q.
    coded_label_bits, coded_gap_bits : float
        Of P+Q+H, on average.
    shared, coded : float
        Percent after P+Q and P+Q+H.
    """

    density: float
    label_bits: int
    coded_label_bits: float
    gap_bits: int
    coded_gap_bits: float
    shared: float
    coded: float


@dataclass(frozen=True)
class Paper:
    """What the paper says of a network.

    Attributes
    ----------
    layers : tuple of PaperLayer
        In order.
    ratios : tuple of float
        After P, P+Q, P+Q+H.
    errors : tuple of float
        Percent of the test images, before and after.
    kilobytes : tuple of int
        Before and after.
    """

    layers: tuple[PaperLayer, ...]
    ratios: tuple[float, float, float]
    errors: tuple[float, float]
    kilobytes: tuple[int, int]


PAPER = {
    "lenet_300_100": Paper(
        (
            PaperLayer(8, 6, 4.4, 5, 3.7, 3.1, 2.32),
            PaperLayer(9, 6, 4.4, 5, 4.3, 3.8, 3.04),
            PaperLayer(26, 6, 4.3, 5, 3.2, 15.7, 12.70),
        ),
        (12, 32, 40),
        (1.64, 1.58),
        (1070, 27),
    ),
    "lenet_5": Paper(
        (
            PaperLayer(66, 8, 7.2, 5, 1.5, 78.5, 67.45),
            PaperLayer(12, 8, 7.2, 5, 3.9, 6.0, 5.28),
            PaperLayer(8, 5, 4.5, 5, 4.5, 2.7, 2.45),
            PaperLayer(19, 5, 5.2, 5, 3.7, 6.9, 6.13),
        ),
        (12, 33, 39),
        (0.80, 0.74),
        (1720, 44),
    ),
}


def table(network: Network, paper: Paper, outcome: Outcome) -> str:
    """Return the table of one file: our figures, and the paper's in brackets."""
    by_name = {one.name: one for one in outcome.report.tensors}
    heading = [
        "layer",
        "weights",
        "density",
        "bits P+Q",
        "bits P+Q+H",
        "P+Q",
        "P+Q+H",
        "bytes in file",
        "bias",
    ]
    rows = [heading]
    for layer, theirs in zip(network.layers, paper.layers, strict=True):
        rows.append(_row(layer, by_name[f"{layer}.weight"], by_name[f"{layer}.bias"], theirs))
    widths = [max(len(row[place]) for row in rows) for place in range(len(heading))]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([f"{network.title}: ours (Han et al.)", *lines, *_totals(paper, outcome)])


def _row(layer: str, ours: TensorMetrics, bias: TensorMetrics, theirs: PaperLayer) -> list[str]:
    bits = ours.bits
    kept = max(1, bits.n_kept)
    return [
        layer,
        f"{ours.n_weights:,}",
        f"{100 * ours.density:.2f} % ({theirs.density:g} %)",
        f"{bits.label_bits}+{bits.gap_bits} ({theirs.label_bits}+{theirs.gap_bits})",
        f"{bits.coded / kept:.1f} ({theirs.coded_label_bits + theirs.coded_gap_bits:.1f})",
        f"{100 * bits.shared / bits.dense:.2f} % ({theirs.shared:g} %)",
        f"{100 * bits.coded / bits.dense:.2f} % ({theirs.coded:g} %)",
        f"{ours.stored_bytes:,}",
        f"{bias.stored_bytes:,}",
    ]


def _totals(paper: Paper, outcome: Outcome) -> list[str]:
    report = outcome.report
    ours = report.ratio_pruned, report.ratio_shared, report.ratio_coded
    stages = ", ".join(
        f"{stage} {ratio:.1f}x ({theirs:g}x)"
        for stage, ratio, theirs in zip(("P", "P+Q", "P+Q+H"), ours, paper.ratios, strict=True)
    )
    dense = DASH if outcome.dense_error is None else f"{outcome.dense_error:.2f} %"
    return [
        f"as the paper counts: {stages}; weights kept {sum(one.bits.n_kept for one in report.tensors):,}",
        f"whole file: {report.n_bytes_before:,} -> {outcome.n_bytes:,} bytes, {report.ratio:.1f}x "
        f"({paper.kilobytes[0]} -> {paper.kilobytes[1]} kB, {paper.ratios[2]:g}x)",
        f"test error, read back from the file: {outcome.test_error:.2f} % ({paper.errors[1]:.2f} %); "
        f"dense network {dense} ({paper.errors[0]:.2f} %); held-out error {outcome.held_out_error:.2f} %",
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return median and spread of several seeds."""
    parts = []
    for title, values, form in (
        ("bytes", [float(one.n_bytes) for one in outcomes], ",.0f"),
        ("ratio", [one.report.ratio or 0.0 for one in outcomes], ".1f"),
        ("test error", [one.test_error for one in outcomes], ".2f"),
    ):
        low, middle, high = min(values), statistics.median(values), max(values)
        parts.append(f"{title} {middle:{form}} ({low:{form}} to {high:{form}})")
    return f"median of {len(outcomes)} seeds: " + ", ".join(parts)
