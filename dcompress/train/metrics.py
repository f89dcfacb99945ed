"""What compression did to a model, in figures: zeros, parameters, work, size by stage, time, outputs."""

from __future__ import annotations

import copy
import math
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcompress.checkpoint import (
    checkpoint_from_state_dict,
    state_dict_from_checkpoint,
)
from dcompress.decibels import to_decibels
from dcompress.decode import FrameReader, open_frame
from dcompress.errors import EncodeError
from dcompress.inspection import read_torch_extra
from dcompress.presets import FLOATS
from dcompress.stages import Checkpoint, tensor_specs
from dcompress.train.running import as_inputs, evaluating, leaves
from dcompress.train.stage_bits import StageBits, count_stages
from dcompress.train.text import align, percent

__all__ = ["CompressionReport", "TensorMetrics", "measure"]

_WARM_UPS = 2  # calls before any is timed


@dataclass(frozen=True)
class TensorMetrics:
    """One tensor of the compressed model.

    Attributes
    ----------
    name : str
        In the state dict.
    shape : tuple of int
        Its shape.
    bits : StageBits
        What it takes after each stage of the paper.
    flops : int
        Of the module that holds it, for the example; 0 if it is no matrix or kernel.
    stored_bytes : int or None
        In the file, if there is one.
    """

    name: str
    shape: tuple[int, ...]
    bits: StageBits
    flops: int
    stored_bytes: int | None = None

    @property
    def n_weights(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Fraction that is not zero."""
        return self.bits.n_kept / self.n_weights if self.n_weights else 1.0


@dataclass(frozen=True)
class CompressionReport:
    """A model before and after compression.

    Attributes
    ----------
    tensors : tuple of TensorMetrics
        Of the compressed model, tied ones once.
    n_parameters, n_parameters_before : int
        Elements of all tensors of the state dict.
    n_bytes_before : int
        Of all tensors before.
    file_bytes : int or None
        Size of the file.
    flops, flops_before : int
        Of one call with the example, as torch counts them: a multiplication and an addition are two.
    effective_flops : int
        The same without products with weights that are zero: what hardware for sparse models would do.
    seconds, seconds_before : float or None
        Median time of a call; None if it was not timed.
    output_error : float
        Squared error of the outputs over their squares.
    largest_error : float
        Largest difference of an output.
    """

    tensors: tuple[TensorMetrics, ...]
    n_parameters: int
    n_parameters_before: int
    n_bytes_before: int
    file_bytes: int | None
    flops: int
    flops_before: int
    effective_flops: int
    seconds: float | None
    seconds_before: float | None
    output_error: float
    largest_error: float

    @property
    def sparsity(self) -> float:
        """Fraction of the compressed model's parameters that are zero."""
        n_kept = sum(tensor.bits.n_kept for tensor in self.tensors)
        return 1 - n_kept / self.n_parameters if self.n_parameters else 0.0

    @property
    def parameter_reduction(self) -> float:
        """Fraction of the parameters that are gone, or zero."""
        n_kept = sum(tensor.bits.n_kept for tensor in self.tensors)
        return 1 - n_kept / self.n_parameters_before if self.n_parameters_before else 0.0

    @property
    def flop_reduction(self) -> float:
        """Fraction of the work that is gone because tensors are smaller."""
        return 1 - self.flops / self.flops_before if self.flops_before else 0.0

    @property
    def effective_flop_reduction(self) -> float:
        """The same with products with zeros left out."""
        return 1 - self.effective_flops / self.flops_before if self.flops_before else 0.0

    @property
    def size_reduction(self) -> float | None:
        """Fraction of the bytes that are gone; None without a file."""
        return None if self.file_bytes is None else 1 - self.file_bytes / self.n_bytes_before

    @property
    def ratio(self) -> float | None:
        """Bytes before over bytes of the file; None without one."""
        return None if self.file_bytes is None else self.n_bytes_before / self.file_bytes

    @property
    def ratio_pruned(self) -> float:
        """Compression ratio after P, as the paper counts; see `dcompress.train.stage_bits`."""
        return self._ratio("pruned")

    @property
    def ratio_shared(self) -> float:
        """Compression ratio after P+Q."""
        return self._ratio("shared")

    @property
    def ratio_coded(self) -> float:
        """Compression ratio after P+Q+H."""
        return self._ratio("coded")

    @property
    def output_sqnr(self) -> float:
        """Signal to noise ratio of the outputs, in dB."""
        return to_decibels(1.0, self.output_error)

    def _ratio(self, stage: str) -> float:
        bits = sum(getattr(tensor.bits, stage) for tensor in self.tensors)
        return 8 * self.n_bytes_before / bits if bits else math.inf

    def __str__(self) -> str:
        rows = []
        for one in self.tensors:
            bits = one.bits
            shared = bits.shared < bits.pruned
            rows.append(
                [
                    one.name,
                    "x".join(map(str, one.shape)) or "-",
                    percent(one.density),
                    f"{bits.label_bits}" + (f"+{bits.gap_bits}" if bits.gap_bits else "") if shared else "-",
                    *(f"{count / 8:,.0f}" for count in (bits.dense, bits.pruned, bits.shared, bits.coded)),
                    "-" if one.stored_bytes is None else f"{one.stored_bytes:,}",
                ]
            )
        heading = ["tensor", "shape", "density", "bits", "bytes", "P", "P+Q", "P+Q+H", "in file"]
        lines = align(heading, rows)
        lines += [
            f"parameters {self.n_parameters_before:,} -> {self.n_parameters:,}, "
            f"{percent(self.sparsity)} of them zero",
            f"ratio P {self.ratio_pruned:.1f}, P+Q {self.ratio_shared:.1f}, P+Q+H {self.ratio_coded:.1f}"
            + ("" if self.ratio is None else f"; file {self.file_bytes:,} bytes, ratio {self.ratio:.1f}"),
            f"FLOPs {self.flops_before:,} -> {self.flops:,}, {self.effective_flops:,} without zeros",
        ]
        if self.seconds is not None and self.seconds_before is not None:
            lines.append(f"time {1e3 * self.seconds_before:.3f} ms -> {1e3 * self.seconds:.3f} ms")
        quality = "exact" if not self.output_error else f"{self.output_sqnr:.1f} dB"
        lines.append(f"outputs {quality}, largest difference {self.largest_error:.3g}")
        return "\n".join(lines)


def measure(
    before: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    after: nn.Module | None = None,
    *,
    file: str | os.PathLike[str] | bytes | None = None,
    n_timed: int = 0,
) -> CompressionReport:
    """Return what compression did to a model.

    Parameters
    ----------
    before : Module
        The model before.
    example_inputs : Tensor or tuple
        What it is called with, to count its work, to time it and to compare outputs.
    after : Module, optional
        The compressed one. If it is not given, it is ``before`` with the tensors of the file.
    file : path-like or bytes, optional
        The ``.dcz`` file, or its bytes.
    n_timed : int
        Calls that are timed, after two that are not; 0 = none.

    Returns
    -------
    report : CompressionReport
        ``print`` it for a table.

    Raises
    ------
    EncodeError
        There is neither a compressed model nor a file, the file is that of another model, or the outputs do
        not compare.
    DecodeError, OSError
        The file cannot be read.
    """
    inputs = as_inputs(example_inputs)
    if after is None and file is None:
        raise EncodeError("give the compressed model, its file, or both")
    if type(n_timed) is not int or n_timed < 0:
        raise EncodeError(f"n_timed must be a whole number, at least 0, not {n_timed!r}")
    stored: dict[str, int] = {}
    file_bytes = None
    if file is not None:
        with open_frame(file if isinstance(file, bytes) else Path(file)) as reader:
            directory = reader.directory
            file_bytes = directory.frame_bytes
            stored = {name: record.stored_bytes for name, record in directory.tensors.items()}
            state_dict = _read(reader) if after is None else None
        if after is None:
            after = copy.deepcopy(before)
            try:
                after.load_state_dict(state_dict or {})
            except RuntimeError as error:
                raise EncodeError(f"the file is that of another model: {error}") from error
    assert after is not None
    old = checkpoint_from_state_dict(before.state_dict())
    new = checkpoint_from_state_dict(after.state_dict())
    if stored and set(stored) != set(new.tensors):
        odd = sorted(set(stored) ^ set(new.tensors))[0]
        raise EncodeError(f"the file is that of another model: tensor {odd!r} is in one of them alone")
    flops_before, _ = _count_flops(before, inputs)
    flops, by_module = _count_flops(after, inputs)
    names = [name for name in new.tensors if name not in new.ties]
    tensors = [_measure_tensor(name, new, by_module, stored.get(name)) for name in names]
    effective = flops - sum(one.flops - round(one.flops * one.density) for one in tensors)
    with evaluating(before), evaluating(after):
        noise, largest = _compare(leaves(before(*inputs)), leaves(after(*inputs)))
    return CompressionReport(
        tuple(tensors),
        sum(one.n_weights for one in tensors),
        _count(old),
        sum(old.tensors[name].n_bytes for name in old.tensors if name not in old.ties),
        file_bytes,
        flops,
        flops_before,
        effective,
        _time(after, inputs, n_timed),
        _time(before, inputs, n_timed),
        noise,
        largest,
    )


def _read(reader: FrameReader) -> dict[str, Any]:
    """Return the state dict of a frame."""
    records = reader.directory.tensors
    ties = {name: record.alias_of for name, record in records.items() if record.alias_of is not None}
    checkpoint = Checkpoint(reader.read_all(), ties, {}, read_torch_extra(reader))
    return state_dict_from_checkpoint(checkpoint)


def _count(checkpoint: Checkpoint) -> int:
    """Return the elements of all tensors, tied ones once."""
    specs = tensor_specs(checkpoint.tensors)
    return sum(math.prod(shape) for name, (_, shape) in specs.items() if name not in checkpoint.ties)


def _measure_tensor(
    name: str, checkpoint: Checkpoint, flops: Mapping[str, int], stored: int | None
) -> TensorMetrics:
    """Return the figures of one tensor."""
    data = checkpoint.tensors[name]
    # What is not a float is kept as it is; a complex number counts as two words, of which none is pruned.
    if data.dtype.name in FLOATS:
        bits = count_stages(data.words, data.shape)
    else:
        n_bits = 8 * data.n_bytes
        n_kept = int((data.words != 0).sum()) if data.dtype.words_per_element == 1 else math.prod(data.shape)
        bits = StageBits(n_bits, n_bits, n_bits, n_bits, n_kept, 0, 8 * data.dtype.word_bytes, 0)
    return TensorMetrics(name, data.shape, bits, flops.get(name, 0), stored)


def _count_flops(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, dict[str, int]]:
    """Return the work of one call, and the part of it that is due to each matrix and kernel, by name."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its operators are not counted
    try:
        with evaluating(model), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    root = type(model).__name__
    by_path = {path: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
    work: dict[str, int] = {}
    for path, module in model.named_modules():
        own = by_path.get(f"{root}.{path}" if path else root, 0)
        for child, _ in module.named_children():
            own -= by_path.get(".".join(filter(None, (root, path, child))), 0)
        matrices = {
            f"{path}.{name}".lstrip("."): parameter.numel()
            for name, parameter in module.named_parameters(recurse=False)
            if sum(n > 1 for n in parameter.shape) >= 2
        }
        for name, n_weights in matrices.items():
            work[name] = own * n_weights // sum(matrices.values())
    return counter.get_total_flops(), work


def _compare(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """Return squared error over squares, and the largest difference, of outputs."""
    if [one.shape for one in before] != [one.shape for one in after] or not before:
        raise EncodeError("the outputs of the two models differ in number or shape: they do not compare")
    signal = noise = largest = 0.0
    for one, other in zip(before, after, strict=True):
        if not one.numel():
            continue
        wide = torch.complex128 if one.is_complex() else torch.float64
        difference = (one.to(wide) - other.to(wide)).abs()
        signal += float(one.to(wide).abs().square().sum())
        noise += float(difference.square().sum())
        largest = max(largest, float(difference.max()))
    return (noise / signal if signal else math.inf) if noise else 0.0, largest


def _time(model: nn.Module, inputs: tuple[Any, ...], n_timed: int) -> float | None:
    """Return the median time of a call, in seconds; None if nothing is to be timed."""
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    seconds = []
    with evaluating(model):
        for n_calls in range(n_timed + _WARM_UPS if n_timed else 0):
            start = time.perf_counter()
            model(*inputs)
            if on_gpu:
                torch.cuda.synchronize()
            if n_calls >= _WARM_UPS:
                seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) if seconds else None
