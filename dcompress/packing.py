"""Stage 3 of tensors: each takes the form that costs least; small ones share a table set with others.

``encode_tensor`` is a pure function of its tensor, ``encode_group`` one of its tensors, so they can run
anywhere, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcompress.checksum import fold, partial_sum
from dcompress.choice import Choice, choose_plain, choose_shared, table_bytes
from dcompress.coding import Codebook
from dcompress.coding.context import lanes_of
from dcompress.constants import CODER_CONTEXT, CODER_RAW, RUN_CODERS, SHARED_CODERS
from dcompress.container.writer import CodedTensor
from dcompress.grid import GridTensor, fits_grid
from dcompress.modelling import ContextModel, fit_contexts
from dcompress.profiles import FULL, Profile
from dcompress.recognition import recognise
from dcompress.settings import DEFAULT_EFFORT
from dcompress.stages import SharedTensor, TensorData, Words
from dcompress.views import Candidate

__all__ = ["GROUP_WORDS", "Prepared", "encode_group", "encode_tensor", "prepare", "word_source"]

GROUP_WORDS = 1 << 24  # words of the tensors that are fitted together, beyond which the next group begins
# By effort: how often classes are moved, and how many neighbours count; of several tries the best is taken.
_TRIES = (
    *[((0, 2),)] * 4,
    ((1, 2),),
    ((2, 2),),
    ((3, 2),),
    ((2, 2), (5, 2), (3, 0)),
    ((2, 2), (4, 2), (8, 2), (4, 1), (4, 0)),
)
_FIRST_EFFORT = 4  # from which on the context coder is tried
_MAX_GRID = 1 << 27  # words of a tensor, beyond which its classes would take too much memory
_SMALL = 1 << 16  # words of a tensor, up to which two codebooks are costed for it
_FILLING = 4  # times as many values in a codebook of multiples are not too many for larger ones
_THOROUGH = 7  # the effort from which on only size counts
_HANDICAP = (1.03, 1.002)  # how much more the faster coders may cost, below that effort and from it on
_DENSE = 0.25  # kept words, as a fraction, from which on runs are not fast either
_WORTH = 0.1  # of the bits that say where kept words are: what classes must promise to save
_FITS = 4
_NEAR = 8.0  # bits by which a cost may be wrong
_STATE_BITS = 16  # what a lane costs beside its symbols
_SURE = 0.9  # a stream takes no less than this part of what it was said to cost


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tensor with the best of the coders that need no other tensor.

    Attributes
    ----------
    tensor : TensorData or SharedTensor
        What is to be coded.
    shared : SharedTensor or None
        Its labels, if it has few enough values.
    choice : Choice or None
        None for a tensor without words, and before contexts were tried.
    in_grid : bool
        Whether the context coder is to be tried.
    profile : Profile
        What the file may ask of its reader.
    """

    tensor: TensorData | SharedTensor
    shared: SharedTensor | None
    choice: Choice | None
    in_grid: bool = False
    profile: Profile = FULL

    @property
    def n_words(self) -> int:
        """Words of the tensor."""
        return _size(self.tensor)


def _size(tensor: TensorData | SharedTensor) -> int:
    return tensor.labels.size if isinstance(tensor, SharedTensor) else tensor.words.size


def encode_tensor(tensor: TensorData | SharedTensor, executor: Executor | None = None) -> CodedTensor:
    """Return the smallest coded form of a tensor that stands alone, without a table set.

    Parameters
    ----------
    tensor : TensorData or SharedTensor
        Lossless words, or what stage 2 made. Words with few distinct values are recognised.
    executor : Executor, optional
        Where to code chunks side by side. The result does not depend on it.

    Notes
    -----
    Every coder that can hold the tensor is costed exactly, tables included; the smallest wins.
    """
    return _encode(prepare(tensor, 0), executor)


def prepare(
    tensor: TensorData | SharedTensor, effort: int = DEFAULT_EFFORT, profile: Profile = FULL
) -> Prepared:
    """Return a tensor with the best of the coders that need no other tensor, ready for `encode_group`."""
    n_words = _size(tensor)
    if n_words == 0:
        return Prepared(tensor, None, None)
    forms = [tensor] if isinstance(tensor, SharedTensor) else recognise(tensor, profile.labels)
    shared = _smallest([form for form in forms if _holds(profile, form)], profile)
    one = Prepared(tensor, shared, None, profile=profile)
    if shared is not None and effort >= _FIRST_EFFORT and n_words <= _MAX_GRID and fits_grid(shared, profile):
        one = replace(one, in_grid=effort >= _THOROUGH or _gains_much(shared))
    return one if one.in_grid else replace(one, choice=_alone(one))


def _smallest(forms: list[SharedTensor], profile: Profile) -> SharedTensor | None:
    """Return which of several ways to say a tensor takes least; None of none."""
    if len(forms) < 2:
        return forms[0] if forms else None
    few, even = forms
    if few.labels.size > _SMALL:  # then codebooks are next to nothing, and costing takes its time
        return even if even.n_labels <= _FILLING * few.n_labels else few
    one, other = (choose_shared(form, profile=profile) for form in forms)
    return even if one is None or (other is not None and other.cost < one.cost) else few


def _holds(profile: Profile, shared: SharedTensor) -> bool:
    """Return whether a file may have labels and codebooks of this size."""
    codebook = Codebook.of(shared)
    return codebook.fits and shared.n_labels <= profile.labels and codebook.rows.size <= profile.values


def _alone(one: Prepared, to_beat: float = np.inf) -> Choice | None:
    """Return the best of the coders that need no other tensor; None if none costs less than ``to_beat``."""
    tensor = one.tensor
    best = None if one.shared is None else choose_shared(one.shared, to_beat, one.profile)
    least = min(to_beat, np.inf if best is None else best.cost)
    # A codebook at less than half of the bits of a word leaves nothing for the lossless coders to win.
    if least > 4 * tensor.dtype.word_bytes * _size(tensor):
        plain = choose_plain(tensor.dtype, word_source(tensor)(0, _size(tensor)), one.profile)
        best = plain if plain.cost < least else best
    return best


def _gains_much(shared: SharedTensor) -> bool:
    """Return whether contexts promise enough for a tensor to forgo the speed of runs: see `_WORTH`."""
    if not shared.has_zero or shared.states:  # the labels of a trellis are twice as many to any other coder
        return True
    rows = shared.labels.reshape(-1, max(1, shared.labels.size // (shared.shape[0] if shared.shape else 1)))
    kept = rows != 0
    density = float(kept.mean())
    if density >= _DENSE or density == 0:
        return True
    # The entropy of where the kept words are, for all alike and for rows and columns each of their own.
    whole = _entropy(np.array([density]))[0] * rows.size
    by_row = _entropy(kept.mean(axis=1)).sum() * rows.shape[1] + rows.shape[0]
    by_column = _entropy(kept.mean(axis=0)).sum() * rows.shape[0] + rows.shape[1]
    return bool(2 * whole - by_row - by_column > _WORTH * whole)


def _entropy(chances: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the bits of a choice of two."""
    p = np.clip(chances, 1e-12, 1 - 1e-12)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def encode_group(
    group: Sequence[Prepared],
    set_number: int,
    effort: int = DEFAULT_EFFORT,
    executor: Executor | None = None,
) -> tuple[list[CodedTensor], bytes | None]:
    """Return coded tensors, and the table set that those of them share that are smaller with it.

    Parameters
    ----------
    group : sequence of Prepared
        Fitted together.
    set_number : int
        Number that the table set will have in the frame.
    effort : int
        How long to look for good classes.
    executor : Executor, optional
        Where to code chunks side by side. The result does not depend on it.
    """
    grids = {
        n: Candidate(GridTensor.of(one.shared, one.profile))
        for n, one in enumerate(group)
        if one.in_grid and one.shared
    }
    chosen = list(group)
    alone: dict[int, Choice | None] = {}
    members = list(grids)
    table_set = None
    for turn in range(_FITS):  # again without those that are better off alone
        if not members:
            break
        models = [fit_contexts([grids[number] for number in members], *how) for how in _TRIES[effort - 1]]
        model = min(models, key=lambda one: one.total_bits)
        table_set = model.tables.to_bytes()
        choices = [
            _context_choice(model, place, grids[number].tensor, Codebook.of(one.shared), set_number)
            for place, number in enumerate(members)
            if (one := group[number]).shared is not None
        ]
        # Each bears its share of the table set; who then costs more alone need not be looked at closely.
        burden = 1 + 8 * len(table_set) / sum(choice.cost for choice in choices)
        lost = []
        for number, choice in zip(members, choices, strict=True):
            one = group[number]
            assert one.shared is not None
            handicap = 1.0 if one.shared.states else _HANDICAP[effort >= _THOROUGH]
            if alone.get(number) is None:
                cap = choice.cost * max(burden, handicap) + _NEAR
                alone[number] = _alone(one, cap)
            other = alone[number]
            if other is not None and other.cost <= choice.cost * handicap:
                lost.append(number)
            chosen[number] = replace(one, choice=choice)
        if not lost or turn + 1 == _FITS:
            costs = dict(zip(members, (choice.cost for choice in choices), strict=True))
            may_be = len(table_set) <= group[members[0]].profile.table_set_bytes
            if may_be and _saves(group, costs, alone, burden, 8 * len(table_set)):
                break
        # All go if the set does not pay, and the rest may fit better without those that left.
        table_set = None
        members = [number for number in members if lost and number not in lost]
    if table_set is None:
        members = []
    for number in set(grids) - set(members):
        one = group[number]
        chosen[number] = replace(one, choice=alone[number] or _alone(one))
    return [_encode(one, executor) for one in chosen], table_set


def _saves(
    group: Sequence[Prepared],
    costs: dict[int, float],
    alone: dict[int, Choice | None],
    burden: float,
    set_bits: int,
) -> bool:
    """Return whether tensors cost less with a table set than ``alone``, which is filled in where need be."""
    for exact in (False, True):
        saved = -float(set_bits)
        for number, cost in costs.items():
            one, other = group[number], alone[number]
            if other is None and exact:
                other = alone[number] = _alone(one)
            # Who was not looked at closely costs more by its share of the set, at least.
            saved += cost * (burden - 1) if other is None else other.cost - cost
        if saved > 0:
            return True
    return False


def _context_choice(
    model: ContextModel, place: int, grid: GridTensor, codebook: Codebook, set_number: int
) -> Choice:
    """Return what one of a model's tensors costs."""
    coder = model.coder(place, grid, codebook, set_number)
    shift = grid.chunk_shift
    n_chunks = -(-grid.geometry.n_rows >> shift) if shift else 1
    lanes = n_chunks * lanes_of(grid.geometry.n_rows, grid.grid.size)
    cost = model.bits[place] + 8 * len(table_bytes(coder)) + _STATE_BITS * lanes
    return Choice(cost if coder.classes.fit(_SURE * cost / 8) else float("inf"), coder, shift)


def _encode(one: Prepared, executor: Executor | None) -> CodedTensor:
    """Return a tensor coded as chosen."""
    if one.choice is None:
        return CodedTensor(one.tensor.dtype, one.tensor.shape, CODER_RAW, 0, 0, 0, (), 0)
    return _encode_chunks(one.tensor, one.shared, one.choice, word_source(one.tensor), executor)


def word_source(tensor: TensorData | SharedTensor) -> Callable[[int, int], Words]:
    """Return a function that gives any stretch of the decoded words."""
    if isinstance(tensor, TensorData):
        words = tensor.words
        return lambda first, last: words[first:last]
    lookup = tensor.lookup()
    labels = tensor.labels
    stretch = labels.size // tensor.n_groups

    def gather(first: int, last: int) -> Words:
        groups = np.arange(first, last) // stretch if tensor.n_groups > 1 else 0
        words: Words = lookup[groups, labels[first:last]]
        return words

    return gather


def _encode_chunks(
    tensor: TensorData | SharedTensor,
    shared: SharedTensor | None,
    choice: Choice,
    words_of: Callable[[int, int], Words],
    executor: Executor | None,
) -> CodedTensor:
    """Code every chunk, and digest the words that a decoder must give back."""
    n_words = _size(tensor)
    coder, shift = choice.coder, choice.chunk_shift
    step = 1 << shift if shift else n_words
    if shift and coder.number == CODER_CONTEXT:
        step *= n_words // tensor.shape[0]
    word_bytes = tensor.dtype.word_bytes

    def code_one(first: int) -> tuple[bytes, int]:
        last = min(n_words, first + step)
        words = words_of(first, last)
        symbols: NDArray[Any] = words
        if coder.number in SHARED_CODERS:
            assert shared is not None
            symbols = shared.labels[first:last]
        return coder.encode_chunk(symbols, first), partial_sum(words, first * word_bytes, n_words)

    starts = range(0, n_words, step)
    done: Iterator[tuple[bytes, int]] = map(code_one, starts)
    if executor is not None and len(starts) > 1:
        done = iter(executor.map(code_one, starts))
    chunks, sums = zip(*done, strict=True)
    n_labels = n_kept = 0
    if coder.number in SHARED_CODERS:
        assert shared is not None
        n_labels = shared.n_labels
        n_kept = int(np.count_nonzero(shared.labels)) if coder.number in RUN_CODERS else 0
    first_chunk = table_bytes(coder) + chunks[0]
    return CodedTensor(
        tensor.dtype,
        tensor.shape,
        coder.number,
        n_labels,
        n_kept,
        shift,
        (first_chunk, *chunks[1:]),
        fold(sum(sums)),
    )
