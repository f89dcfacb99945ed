"""An open frame as a checkpoint whose tensors are decoded one by one, when they are looked up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from dcompress import kernels
from dcompress.constants import CODER_RAW, DType
from dcompress.decode import FrameReader
from dcompress.inspection import read_torch_extra
from dcompress.stages import Checkpoint, TensorData

__all__ = ["FrameTensors", "read_lazily"]

Progress = Callable[[int], None]


class FrameTensors(Mapping[str, TensorData]):
    """Tensors of an open frame, decoded anew at every look-up and freed when their user drops them.

    Attributes
    ----------
    specs : dict of str to (DType, tuple of int)
        Element type and shape of every tensor, from the directory.
    """

    def __init__(self, reader: FrameReader, names: Collection[str], progress: Progress | None = None) -> None:
        records = reader.directory.tensors
        self.specs: dict[str, tuple[DType, tuple[int, ...]]] = {
            name: (records[name].dtype, records[name].shape) for name in names
        }
        self._reader = reader
        self._progress = progress

    def __getitem__(self, name: str) -> TensorData:
        if name not in self.specs:
            raise KeyError(name)
        data = self._reader.read_tensor(name)
        if self._progress is not None:
            self._progress(data.n_bytes)
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def read_lazily(
    reader: FrameReader, names: Collection[str] | None = None, *, progress: Progress | None = None
) -> Checkpoint:
    """Return the model in an open frame; no tensor is decoded before it is looked up.

    Parameters
    ----------
    reader : FrameReader
        Must stay open as long as the checkpoint is used.
    names : collection of str, optional
        Which tensors, in the order of the file; all by default. Some of them only: plain values of the
        state dict are left out.
    progress : callable, optional
        Called with the decoded bytes of each tensor that is done.

    Raises
    ------
    LimitError
        They exceed ``max_output_bytes`` together (LIM-05).
    CorruptError
        The section with the Python side of the state dict is damaged.
    """
    records = reader.directory.tensors
    chosen = list(records if names is None else names)
    ties: dict[str, str] = {}
    firsts: dict[str, str] = {}
    for name in chosen:
        target = records[name].alias_of
        first = firsts.setdefault(name if target is None else target, name)
        if first != name:
            ties[name] = first
    stored = [records[name] for name in firsts]
    reader.check_output(stored)
    # One look-up is little work, all of them may be much: kernels are chosen by the whole.
    kernels.expect(sum(record.n_kept for record in stored if record.coder != CODER_RAW))
    extra = read_torch_extra(reader)
    if names is not None:
        extra = {key: value for key, value in extra.items() if key == "_metadata"}
    metadata = dict(reader.directory.metadata)
    return Checkpoint(FrameTensors(reader, chosen, progress), ties, metadata, extra)
