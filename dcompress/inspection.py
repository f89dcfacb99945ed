"""Frame -> report: what is inside, payloads untouched."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

from dcompress.constants import SECTION_RECEIPT, SECTION_TORCH
from dcompress.container.records import TensorRecord
from dcompress.decibels import to_decibels
from dcompress.decode import FrameReader
from dcompress.errors import CorruptError, LimitError

__all__ = ["Receipt", "read_receipt", "read_torch_extra"]


@dataclass(frozen=True)
class Receipt:
    """How a frame came to be.

    Attributes
    ----------
    recipe : dict
        The recipe, as ``Recipe.to_dict`` gives it.
    errors : dict of str to (float, float)
        By tensor that compression changed: sum of squares of its weights, and of the changes.
    """

    recipe: dict[str, Any]
    errors: dict[str, tuple[float, float]]

    def sqnr(self, name: str) -> float:
        """Return the signal to noise ratio of a tensor in dB; infinite if exact, NaN if unknown."""
        return to_decibels(*self.errors.get(name, (0.0, 0.0)))


def read_receipt(reader: FrameReader) -> Receipt | None:
    """Return the receipt of a frame, None if it has none.

    Raises
    ------
    CorruptError
        It makes no sense (SEC-02).
    """
    content = _read_json(reader, SECTION_RECEIPT)
    if content is None:
        return None
    stored = [r for r in reader.directory.tensors.values() if r.alias_of is None]
    try:
        errors = {
            stored[_place(number)].name: (float(signal), float(noise))
            for number, (signal, noise) in content["errors"].items()
        }
        return Receipt(dict(content["recipe"]), errors)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise CorruptError(f"the receipt makes no sense: {error!r}", rule="SEC-02") from None


def read_torch_extra(reader: FrameReader) -> dict[str, Any]:
    """Return the Python side of a torch state dict: ``_metadata`` and plain values; empty if none.

    Raises
    ------
    CorruptError
        It makes no sense (SEC-02).
    """
    content = _read_json(reader, SECTION_TORCH) or {}
    values, places = content.get("values", {}), content.get("value_positions", [])
    sound = isinstance(values, dict) and isinstance(places, list) and len(values) == len(places)
    sound = sound and all(type(place) is int for place in places)
    sound = sound and values.keys().isdisjoint(reader.directory.tensors)
    if not sound or not isinstance(content.get("_metadata", {}), dict):
        raise CorruptError("the torch section makes no sense", rule="SEC-02")
    return content


def _place(number: str) -> int:
    """Return the number of a tensor, as a receipt writes it."""
    if not number.isdecimal():
        raise ValueError(f"no tensor number: {number!r}")
    return int(number)


def density(record: TensorRecord) -> float:
    """Return the fraction of words that are not pruned, as the directory states it."""
    return record.n_kept / record.n_words if record.n_words else 1.0


def _read_json(reader: FrameReader, kind: int) -> dict[str, Any] | None:
    """Return the JSON object of a section, None if it is not there."""
    data = reader.read_section(kind)
    if data is None:
        return None
    unpacker = zlib.decompressobj(-15)
    limit = reader.limits.max_section_bytes
    try:
        text = unpacker.decompress(data, limit)
        if not unpacker.eof and len(text) == limit:
            raise LimitError(f"section {kind} unpacks to more than max_section_bytes={limit}", rule="LIM-06")
        content = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise CorruptError(f"section {kind} is damaged: {error}", rule="SEC-02") from None
    if not unpacker.eof or unpacker.unused_data or not isinstance(content, dict):
        raise CorruptError(f"section {kind} is not one JSON object", rule="SEC-02")
    return content
