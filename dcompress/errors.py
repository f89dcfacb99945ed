"""Every error that the package raises on purpose: one tree, one exit code a class.

A decode error names the broken rule of the spec, the byte offset counted from the start of the frame,
and the tensor, where they are known. All of them survive pickling, so they cross process borders.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ChecksumError",
    "CorruptError",
    "DcompressError",
    "DcompressWarning",
    "DecodeError",
    "EncodeError",
    "LimitError",
    "NotDczError",
    "RecipeError",
    "TruncatedError",
    "UnsupportedError",
    "UnsupportedTensorError",
]


class DcompressError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what ``dcz`` ends with."""

    exit_code = 1


class DcompressWarning(UserWarning):
    """Something was done differently from what the user may expect, without harm to the result."""


class EncodeError(DcompressError):
    """A checkpoint cannot be encoded as asked."""

    exit_code = 2


class RecipeError(EncodeError):
    """A recipe, a preset or a pattern makes no sense, or matches nothing."""


class UnsupportedTensorError(EncodeError):
    """A tensor of the checkpoint is of a kind that a state dict file cannot hold."""

    exit_code = 4


class DecodeError(DcompressError):
    """A frame cannot be decoded.

    Parameters
    ----------
    message : str
        What is wrong, in one line.
    rule : str
        Identifier of the broken rule of the spec, such as ``"HUF-02"``; empty if none applies.
    offset : int or None
        Byte offset of the trouble, counted from the start of the frame.
    tensor : str or None
        Name of the tensor concerned.
    hint : str
        What the user can do about it.
    """

    exit_code = 3
    located = False  # whether the offset counts from the start of the frame, not yet from that of a chunk

    def __init__(
        self,
        message: str,
        *,
        rule: str = "",
        offset: int | None = None,
        tensor: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule
        self.offset = offset
        self.tensor = tensor
        self.hint = hint

    def __str__(self) -> str:
        where = []
        if self.tensor is not None:
            where.append(f"tensor {self.tensor!r}")
        if self.offset is not None:
            where.append(f"offset {self.offset}")
        if self.rule:
            where.append(f"rule {self.rule}")
        text = self.message + (f" ({', '.join(where)})" if where else "")
        return f"{text}; {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        details = {name: getattr(self, name) for name in ("rule", "offset", "tensor", "hint")}
        return _rebuild, (type(self), self.message, details)


def _rebuild(kind: type[DecodeError], message: str, details: dict[str, Any]) -> DecodeError:
    """Rebuild a decode error from its pickle."""
    return kind(message, **details)


class NotDczError(DecodeError):
    """The bytes are not a ``.dcz`` frame."""


class UnsupportedError(DecodeError):
    """The frame is well-formed but needs a newer reader, or a feature that this one lacks."""

    exit_code = 4


class TruncatedError(DecodeError):
    """The frame ends too early."""


class CorruptError(DecodeError):
    """The frame breaks a rule of the spec."""


class ChecksumError(CorruptError):
    """Stored bytes or decoded values do not match their checksum."""


class LimitError(DecodeError):
    """The frame is well-formed but asks for more than the reader's limits allow."""

    exit_code = 5
