"""What is in a frame and what compression did, as rows: for the tables and the JSON of ``dcz``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dcompress.constants import RUN_CODERS, SECTION_NAMES, SHARED_CODERS
from dcompress.container.records import Directory, TensorRecord

if TYPE_CHECKING:
    from dcompress.recipe import TensorRecipe
    from dcompress.rules import RateRule, ShareRule

__all__ = ["FileReport", "Outcome", "TensorRow", "describe_plan", "finite", "report_directory"]


@dataclass(frozen=True)
class Outcome:
    """What is known of a tensor beyond the directory.

    Attributes
    ----------
    sqnr : float
        Signal to noise ratio in dB; infinite if nothing changed.
    n_kept : int or None
        Words that are not zero, if they were counted.
    """

    sqnr: float
    n_kept: int | None = None


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a report.

    Attributes
    ----------
    name, dtype, coder : str
        As in the directory, by name.
    shape : tuple of int
        As the framework shows it.
    n_weights, n_chunks, decoded_bytes, stored_bytes : int
        Sizes; of a tied tensor, nothing is stored.
    density : float or None
        Fraction of words that are not zero; None if that is not known.
    n_centroids : int or None
        Shared values, the zero of pruned weights left out where it is known; None if lossless.
    sqnr : float or None
        In dB, infinite if exact; None if that is not known.
    alias_of : str or None
        The tensor that this one is tied to.
    plan : str
        What the recipe says, in words; empty if that is not asked for.
    """

    name: str
    dtype: str
    coder: str
    shape: tuple[int, ...]
    n_weights: int
    n_chunks: int
    decoded_bytes: int
    stored_bytes: int
    density: float | None = None
    n_centroids: int | None = None
    sqnr: float | None = None
    alias_of: str | None = None
    plan: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element."""
        return 8 * self.stored_bytes / self.n_weights if self.n_weights else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON values; null stands for what is not known, or does not apply."""
        row: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "decoded_bytes": self.decoded_bytes,
        }
        if self.alias_of is not None:
            return row | {"tied_to": self.alias_of}
        row |= {
            "density": self.density,
            "centroids": self.n_centroids,
            "bits_per_weight": self.bits_per_weight,
            "exact": None if self.sqnr is None else self.sqnr == math.inf,
            "sqnr_db": finite(self.sqnr),
            "stored_bytes": self.stored_bytes,
            "coder": self.coder,
            "chunks": self.n_chunks,
        }
        return row | ({"plan": self.plan} if self.plan else {})


@dataclass(frozen=True)
class FileReport:
    """One frame: its tensors, and where its bytes go.

    Attributes
    ----------
    version : str
        Format version.
    file_bytes, head_bytes, table_bytes : int
        The whole frame; preamble and directory; the table sets that tensors share.
    sections : dict of str to int
        Ancillary sections and their bytes.
    metadata : dict of str to str
        Free string metadata.
    rows : tuple of TensorRow
        In state-dict order.
    recipe : dict or None
        What the receipt, or the encoder, says.
    """

    version: str
    file_bytes: int
    head_bytes: int
    table_bytes: int
    sections: dict[str, int]
    metadata: dict[str, str]
    rows: tuple[TensorRow, ...]
    recipe: dict[str, Any] | None = None
    stored: tuple[TensorRow, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stored", tuple(row for row in self.rows if row.alias_of is None))

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all tensors, tied ones once."""
        return sum(row.decoded_bytes for row in self.stored)

    @property
    def n_weights(self) -> int:
        """Elements of all tensors, tied ones once."""
        return sum(row.n_weights for row in self.stored)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file per element."""
        return 8 * self.file_bytes / self.n_weights if self.n_weights else 0.0

    @property
    def ratio(self) -> float:
        """Decoded bytes over the bytes of the whole file."""
        return self.decoded_bytes / self.file_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "format_version": self.version,
            "file_bytes": self.file_bytes,
            "head_bytes": self.head_bytes,
            "table_bytes": self.table_bytes,
            "sections": self.sections,
            "decoded_bytes": self.decoded_bytes,
            "n_tensors": len(self.rows),
            "n_weights": self.n_weights,
            "bits_per_weight": self.bits_per_weight,
            "ratio": self.ratio,
            "recipe": None if self.recipe is None else _plain({"preset": "balanced"} | self.recipe),
            "metadata": self.metadata,
            "tensors": [row.to_dict() for row in self.rows],
        }


def report_directory(
    directory: Directory,
    outcomes: Mapping[str, Outcome],
    recipe: dict[str, Any] | None = None,
    plan: Mapping[str, TensorRecipe] | None = None,
) -> FileReport:
    """Return the report of a frame.

    Parameters
    ----------
    directory : Directory
        What the frame says of itself.
    outcomes : mapping of str to Outcome
        What else is known, by tensor.
    recipe : dict, optional
        As ``Recipe.to_dict`` gives it.
    plan : mapping of str to TensorRecipe, optional
        What the recipe says, by tensor.
    """
    rows = []
    for name, record in directory.tensors.items():
        words = describe_plan(plan[name]) if plan is not None else ""
        rows.append(_make_row(record, outcomes.get(name), words))
    sections: dict[str, int] = {}
    for section in directory.sections:
        kind = SECTION_NAMES.get(section.kind, f"section {section.kind}")
        sections[kind] = sections.get(kind, 0) + section.n_bytes
    return FileReport(
        ".".join(str(number) for number in directory.version),
        directory.frame_bytes,
        directory.head_bytes,
        sum(table_set.n_bytes for table_set in directory.table_sets),
        sections,
        dict(directory.metadata),
        tuple(rows),
        recipe,
    )


def describe_plan(recipe: TensorRecipe) -> str:
    """Return in words what a recipe does to a tensor.

    Examples
    --------
    >>> from dcompress.recipe import PruneRule, ShareRule, TensorRecipe
    >>> describe_plan(TensorRecipe(PruneRule(sparsity=0.9), ShareRule(n_centroids=32)))
    'prune 90 %, kmeans 32'
    """
    words = []
    if recipe.prune is not None:
        rule = recipe.prune
        if rule.sparsity is not None:
            words.append(f"prune {100 * rule.sparsity:g} %")
        elif rule.threshold is not None:
            words.append(f"prune below {rule.threshold:g}")
        else:
            words.append(f"prune below {rule.quality:g} sigma")
        if rule.scope != "tensor":
            words[-1] += f" of {rule.scope}"
    if recipe.share is not None:
        words.append(_describe_share(recipe.share))
    return ", ".join(words) or "lossless"


def _describe_share(rule: ShareRule | RateRule) -> str:
    """Return in words how weights are shared."""
    from dcompress.rules import RateRule

    if isinstance(rule, RateRule):
        extra = [
            f"{key} {value:g}" for key in ("slope", "states") if (value := getattr(rule, key)) is not None
        ]
        return " ".join([f"rate step {'<= ' * rule.fine}{rule.step:g}", *extra])
    if rule.method == "given":
        words = f"codebook of {len(rule.codebook)}"
    elif rule.method == "fixed_point":
        words = f"fixed point {rule.integer_bits}.{rule.fraction_bits}"
    else:
        words = f"{rule.method} {rule.n_centroids}"
    return words + (f" in {rule.groups} groups" if rule.groups > 1 else "")


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold, or None."""
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any, depth: int = 8) -> Any:
    """Return JSON values of a stranger so that they can be written as JSON: finite, and not too deep."""
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, (dict, list)) and depth == 0:
        return None
    if isinstance(value, dict):
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth - 1) for item in value]
    return value


def _make_row(record: TensorRecord, outcome: Outcome | None, plan: str) -> TensorRow:
    """Return the row of one tensor."""
    n_kept = outcome.n_kept if outcome is not None else None
    if record.coder in RUN_CODERS:
        n_kept = record.n_kept
    density = n_kept / record.n_words if n_kept is not None and record.n_words else None
    n_centroids = None
    if record.coder in SHARED_CODERS and record.chunks:
        n_centroids = record.n_labels - (density is not None and density < 1)
    return TensorRow(
        record.name,
        record.dtype.name,
        record.coder_name,
        record.shape,
        record.n_words // record.dtype.words_per_element,
        len(record.chunks),
        record.decoded_bytes,
        record.stored_bytes,
        density,
        n_centroids,
        None if outcome is None else outcome.sqnr,
        record.alias_of,
        plan,
    )
