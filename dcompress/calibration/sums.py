"""Running sums of what flows into one weight tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcompress.calibration.moments import Floats, Moments, block_bounds
from dcompress.errors import EncodeError

__all__ = ["Sums"]

_WIDE = 1024  # columns up to which sums are float64; beyond, memory counts more


class Sums:
    """What is known so far of one weight tensor.

    Inputs may come in parts, each of which is for an equal share of the rows: queries, keys and values of
    one projection. What is added without a part is for all of them.

    Parameters
    ----------
    shape : tuple of int
        Of the weight tensor.
    layout : str
        As in `Moments`.
    max_columns : int
        Largest block.
    """

    def __init__(self, shape: tuple[int, ...], layout: str, max_columns: int) -> None:
        self.shape = shape
        self.layout = layout
        self.kinds: list[str] = []
        self._max_columns = max_columns
        self._parts: dict[tuple[bool, int | None], _Part] = {}
        self._n_parts = 1
        self._row_weights: Tensor | None = None
        self._influence: Tensor | None = None

    def add(
        self,
        rows: Tensor,
        *,
        holdout: bool,
        part: int | None = None,
        n_parts: int = 1,
        before: Tensor | None = None,
    ) -> None:
        """Count some inputs.

        Parameters
        ----------
        rows : Tensor of shape (n_groups, n_vectors, n_columns)
            Floats of any kind, on any device.
        holdout : bool
            Whether they are to be held out.
        part, n_parts : int
            Which share of the rows they are for, and how many shares there are.
        before : Tensor of the same shape, optional
            The inputs in their place before anything was compressed; always, or never.

        Raises
        ------
        ValueError
            A value is NaN or infinite, or the number of groups has changed.
        """
        self._n_parts = max(self._n_parts, n_parts)
        key = holdout, part
        if key not in self._parts:
            with torch.inference_mode(False):  # what is made in that mode cannot be added to later
                self._parts[key] = _Part(rows, block_bounds(rows.shape[2], self._max_columns))
        self._parts[key].add(rows, before)

    def add_row_weights(self, places: Tensor, weights: Tensor | None) -> None:
        """Count rows that were looked up: their numbers, and the square of the factor of each, if not 1."""
        if weights is None:
            weights = torch.ones(1, device=places.device).expand(places.numel())
        if self._row_weights is None:
            with torch.inference_mode(False):
                self._row_weights = torch.zeros(self.shape[0], dtype=torch.float64)
        flat, factors = places.reshape(-1).cpu().long(), weights.reshape(-1).cpu().double()
        # Not added up on a GPU: there the order, and so the last bits, vary.
        self._row_weights += torch.bincount(flat, factors, minlength=self.shape[0])

    def add_gradient(self, gradient: Tensor, channel_dim: int) -> None:
        """Count the gradient of the loss at some outputs, of which a dimension is that of the channels.

        Raises
        ------
        ValueError
            It is NaN or infinite.
        """
        moved = gradient.detach().movedim(channel_dim, 0).flatten(1).double()
        squares = moved.square().sum(1).cpu()
        if not bool(squares.isfinite().all()):
            raise ValueError("the loss has a gradient there with NaN or infinite values")
        self._influence = squares if self._influence is None else self._influence + squares

    def total_before(self) -> Tensor | None:
        """Return the sum of the inputs before anything was compressed, without those that were held out."""
        kept = self._merged(False)
        return None if kept is None else kept.before

    def finish(self, name: str) -> Moments:
        """Return the sums as arrays.

        Raises
        ------
        EncodeError
            They are beyond what float32 holds.
        """
        n_columns = self._n_columns()
        kept, held = self._merged(False), self._merged(True)
        n_groups = max([len(one.total) for one in (kept, held) if one is not None], default=1)
        empty = torch.zeros(n_groups, dtype=torch.int64)
        weights = None if self._row_weights is None else self._row_weights.numpy()
        zeros = torch.zeros(n_groups, n_columns)
        second = [] if kept is None else kept.second
        if kept is None and held is not None:  # only held-out batches have called it
            second = [torch.zeros_like(block) for block in held.second]
        return Moments(
            tuple(self.kinds),
            self.shape,
            self.layout,
            (empty if kept is None else kept.counts).numpy(),
            _to_numpy(name, zeros if kept is None else kept.total),
            tuple(_symmetric(name, block) for block in second),
            (empty if held is None else held.counts).numpy(),
            () if held is None else tuple(_symmetric(name, block) for block in held.second),
            weights,
            None if self._influence is None else self._influence.numpy(),
            *(() if one is None or kept is None else one.cross_blocks(name) for one in (kept, held)),
        )

    def _n_columns(self) -> int:
        for part in self._parts.values():
            return part.total.shape[1]
        return math.prod(self.shape[1:])

    def _merged(self, holdout: bool) -> _Part | None:
        """Return the sums of all parts, the shares of the rows stacked as groups."""
        common = self._parts.get((holdout, None))
        parts = [self._parts.get((holdout, number)) for number in range(self._n_parts)]
        if self._n_parts == 1 or (common is None and not any(parts)):
            return common
        like = next(one for one in (common, *parts) if one is not None)
        result = like.empty(self._n_parts)
        for number, one in enumerate(parts):
            for source in (one, common):
                if source is not None:
                    result.merge(number, source)
        return result


class _Part:
    """Sums on the device of the first inputs."""

    def __init__(self, like: Tensor, bounds: tuple[tuple[int, int], ...]) -> None:
        n_groups, _, n_columns = like.shape
        wide = n_columns <= _WIDE or like.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        if like.device.type == "mps":
            dtype = torch.float32
        self._bounds = bounds
        self._cross: list[Tensor] | None = None
        self.before: Tensor | None = None  # as the total, of the inputs that the cross moments are with
        self.counts = torch.zeros(n_groups, dtype=torch.int64)
        self.total = torch.zeros(n_groups, n_columns, dtype=dtype, device=like.device)
        self.second = [
            torch.zeros(n_groups, end - begin, end - begin, dtype=dtype, device=like.device)
            for begin, end in bounds
        ]

    def cross_blocks(self, name: str) -> tuple[Floats, ...]:
        return tuple(_to_numpy(name, block) for block in self._cross or ())

    def add(self, rows: Tensor, before: Tensor | None) -> None:
        rows = rows.detach().to(self.total.device)
        if rows.shape[0] != self.total.shape[0] or rows.shape[2] != self.total.shape[1]:
            raise ValueError("its inputs are of another length than before")
        rows = rows if rows.dtype == torch.float64 else rows.float()
        with torch.autocast(rows.device.type, enabled=False):
            summed = rows.sum(1)
            # A sum may overflow where no value is infinite; only then all of them are looked at.
            if not bool(summed.isfinite().all()) and not bool(rows.isfinite().all()):
                raise ValueError("its inputs have NaN or infinite values")
            self.total += summed
            self.counts += rows.shape[1]
            for block, (begin, end) in zip(self.second, self._bounds, strict=True):
                part = rows[:, :, begin:end]
                if block.dtype == rows.dtype:
                    block.baddbmm_(part.mT, part)
                else:
                    block += torch.bmm(part.mT, part)
            if before is not None:
                self._add_cross(before.detach().to(rows.device, rows.dtype), rows)

    def _add_cross(self, before: Tensor, rows: Tensor) -> None:
        if before.shape != rows.shape:
            raise ValueError("its inputs are of another shape than before anything was compressed")
        summed = before.sum(1, dtype=self.total.dtype)
        self.before = summed if self.before is None else self.before + summed
        if self._cross is None:
            self._cross = [torch.zeros_like(block) for block in self.second]
        for block, (begin, end) in zip(self._cross, self._bounds, strict=True):
            one, other = (part[:, :, begin:end].to(block.dtype) for part in (before, rows))
            block += torch.bmm(one.mT, other)

    def empty(self, n_groups: int) -> _Part:
        return _Part(self.total[:1, None].expand(n_groups, 1, -1), self._bounds)

    def merge(self, group: int, other: _Part) -> None:
        self.counts[group] += other.counts[0]
        self.total[group] += other.total[0]
        for mine, block in zip(self.second, other.second, strict=True):
            mine[group] += block[0]
        if other.before is not None:
            if self.before is None:
                self.before = torch.zeros_like(self.total)
            self.before[group] += other.before[0]
        if other._cross is not None:
            if self._cross is None:
                self._cross = [torch.zeros_like(block) for block in self.second]
            for mine, block in zip(self._cross, other._cross, strict=True):
                mine[group] += block[0]


def _to_numpy(name: str, values: Tensor) -> Floats:
    result: Floats = values.to("cpu", torch.float32).numpy()
    if not bool(values.to("cpu", torch.float32).isfinite().all()):
        raise EncodeError(f"inputs of {name!r} are too large: their squares are beyond what float32 holds")
    return result


def _symmetric(name: str, block: Tensor) -> Floats:
    """Return a block that is exactly symmetric, which a matrix product need not be."""
    upper = block.to("cpu", torch.float32).triu()
    return _to_numpy(name, upper + upper.triu(1).mT)
