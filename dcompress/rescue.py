"""A damaged frame -> the tensors that are not damaged, and what is lost.

Damage within chunks, table sets and sections is survived, and so is an end that is cut off. Without its
directory a frame says nothing: then opening it fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from dcompress.decode import FrameReader
from dcompress.errors import DecodeError, LimitError
from dcompress.inspection import read_torch_extra
from dcompress.lazy import FrameTensors
from dcompress.stages import Checkpoint, TensorData

__all__ = ["find_damage", "names_of", "salvage_checkpoint"]

Progress = Callable[[int], None]


def find_damage(check: Callable[[], object]) -> DecodeError | None:
    """Return the damage that a check finds, None if there is none. A limit is no damage: it is raised."""
    try:
        check()
    except LimitError:
        raise
    except DecodeError as error:
        return error
    return None


def names_of(reader: FrameReader, damage: DecodeError) -> Iterator[DecodeError]:
    """Yield a damage, and then once more for each alias of the tensor that it is about."""
    yield damage
    for record in reader.directory.tensors.values():
        if record.alias_of is not None and record.alias_of == damage.tensor:
            lost = copy.copy(damage)
            lost.tensor = record.name
            lost.message = f"it shares the storage of {record.alias_of!r}: {damage.message}"
            yield lost


def salvage_checkpoint(
    reader: FrameReader,
    names: Iterable[str] | None = None,
    *,
    keep: bool = True,
    progress: Progress | None = None,
) -> tuple[Checkpoint, list[DecodeError]]:
    """Decode what can be decoded of a frame that was opened with ``partial``.

    Parameters
    ----------
    reader : FrameReader
        The damaged frame.
    names : iterable of str, optional
        Which tensors, in the order of the file; all by default. As with `dcompress.lazy.read_lazily`, plain
        values of the state dict belong to all of them only.
    keep : bool
        Whether to keep the decoded tensors. Otherwise the checkpoint decodes them once more when they are
        looked up, and needs the reader to stay open.
    progress : callable, optional
        Called with the decoded bytes of each tensor that was tried, sound or not.

    Returns
    -------
    checkpoint : Checkpoint
        Every tensor that is sound, each checked against its checksums and its digest.
    damages : list of DecodeError
        What is wrong with the file as a whole (``tensor`` is None), then what is wrong with each tensor
        that is lost, aliases too. Empty if nothing is.

    Raises
    ------
    LimitError
        They exceed ``max_output_bytes`` together (LIM-05), sound or not: a limit is no damage.
    """
    records = reader.directory.tensors
    chosen = list(records if names is None else names)
    homes = {name: records[name].alias_of or name for name in chosen}
    reader.check_output([records[home] for home in dict.fromkeys(homes.values())])
    damages = [] if reader.damage is None else [reader.damage]
    extra, damage = _read_extra(reader)
    damages += [] if damage is None else [damage]
    if reader.damage is None and damage is None:  # nothing is told twice
        damage = find_damage(reader.verify_ancillary)
        damages += [] if damage is None else [damage]
    sound: dict[str, TensorData | None] = {}
    for home in dict.fromkeys(homes.values()):
        try:
            tensor = reader.read_tensor(home)
            sound[home] = tensor if keep else None
        except LimitError:
            raise
        except DecodeError as error:
            damages += [lost for lost in names_of(reader, error) if lost.tensor in homes]
        if progress is not None:
            progress(records[home].decoded_bytes)
    kept = [name for name in chosen if homes[name] in sound]
    firsts: dict[str, str] = {}
    for name in kept:
        firsts.setdefault(homes[name], name)
    ties = {name: firsts[homes[name]] for name in kept if firsts[homes[name]] != name}
    if names is not None:
        extra = {key: value for key, value in extra.items() if key == "_metadata"}
    elif extra.get("values"):
        is_kept = [homes[name] in sound for name in chosen]
        extra = extra | {"value_positions": _moved(extra["value_positions"], is_kept)}
    tensors: Mapping[str, TensorData] = FrameTensors(reader, kept, progress)
    if keep:
        tensors = {name: data for name in kept if (data := sound[homes[name]]) is not None}
    return Checkpoint(tensors, ties, dict(reader.directory.metadata), extra), damages


def _read_extra(reader: FrameReader) -> tuple[dict[str, Any], DecodeError | None]:
    """Return the Python side of a torch state dict; empty, and why, if it is damaged."""
    try:
        return read_torch_extra(reader), None
    except LimitError:
        raise
    except DecodeError as error:
        error.message = f"plain values and module versions of the state dict are lost: {error.message}"
        return {}, error


def _moved(positions: list[int], is_kept: list[bool]) -> list[int]:
    """Return the places of plain values among all entries, when some of the tensors are gone."""
    n_before = [0, *accumulate(is_kept)]
    places = (max(0, min(position - i, len(is_kept))) for i, position in enumerate(positions))
    return [i + n_before[place] for i, place in enumerate(places)]
