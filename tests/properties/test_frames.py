"""Frames as wholes: every cut and every flipped bit is found, and nothing but our own errors escapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcompress.constants import CODER_CONTEXT, CODER_NAMES, CODER_RAW, DTYPE_BY_NAME
from dcompress.container.writer import CodedTensor, Section
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint, encode_tensor
from dcompress.errors import DecodeError, TruncatedError
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint, SharedTensor, TensorData
from tests.checks import (
    Frame,
    assert_same,
    coded,
    error_of,
    flipped,
    frame_of,
    read_everything,
)
from tests.contexts import random_context
from tests.strategies import dtypes, random_codebook, random_words, seeds, shared_tensors, tensors
from tests.unit.test_decode import Codebook, FixedWidth, Labels, Planes, Raw, SplitRun, ZeroRun, run_coder

LOSSLESS = Recipe(preset="lossless")


def small_model():
    """Every coder, several dtypes, chunks, groups, an alias, an empty tensor, metadata, two sections."""
    rng = np.random.default_rng(0)

    def shared(n_words, n_groups=1, dtype="float32"):
        labels = rng.integers(1, 4, n_words).astype(np.uint16)
        labels[rng.random(n_words) < 0.6] = 0
        codebook = random_codebook(rng, DTYPE_BY_NAME[dtype], n_groups, 3, has_zero=True)
        return SharedTensor(DTYPE_BY_NAME[dtype], (n_words,), codebook, labels, True)

    f32, i16 = DTYPE_BY_NAME["float32"], DTYPE_BY_NAME["int16"]
    raw = TensorData(i16, (3, 2), random_words(rng, 6, 2))
    planes = TensorData(f32, (30,), rng.normal(0, 0.1, 30).astype(np.float32).view(np.uint32))
    dense, sparse, split = shared(24, 2, "float16"), shared(90), shared(60, dtype="uint8")
    labels = shared(40)
    plan = {
        "a.raw": (raw, Raw(), 2),
        "a.planes": (planes, Planes.fit(f32, planes.words)[0], 4),
        "b.fixed": (dense, FixedWidth(Codebook.of(dense)), 3),
        "b.labels": (labels, Labels.fit(Codebook.of(labels), labels.labels, 16)[1][0], 4),
        "b.zero_run": (sparse, run_coder(ZeroRun, sparse, 5), 5),
        "b.split_run": (split, run_coder(SplitRun, split, 0), 0),
        "c.context": (*random_context(rng, f32, (7, 2, 3), 12, shift=2, most_tables=3), 2),
        "c.trellis": (*random_context(rng, f32, (30,), 9, states=4, most_tables=2), 0),
    }
    table_sets = [plan[name][1].tables.to_bytes() for name in ("c.trellis", "c.context")]
    plan["c.context"] = (plan["c.context"][0], replace(plan["c.context"][1], set_number=1), 2)
    stored = {name: coded(*one) for name, one in plan.items()}
    stored["tied"] = "b.labels"
    stored["none"] = CodedTensor(f32, (0, 4), CODER_RAW, 0, 0, 0, (), 0)
    want = {name: one for name, (one, _, _) in plan.items()}
    want |= {"tied": labels, "none": TensorData(f32, (0, 4), np.zeros(0, np.uint32))}
    return frame_of(stored, {"by": "hand"}, [Section(1, b"receipt"), Section(99, b"")], table_sets), want


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_the_model_has_every_coder(model):
    frame, want = model
    assert len(frame) < 2200
    with open_frame(frame) as reader:
        assert {record.coder for record in reader.directory.tensors.values()} == set(CODER_NAMES)
    assert_same(read_everything(frame), want)


def test_every_truncation_is_found(kernel, model):
    frame, _ = model
    for length in range(len(frame)):
        with pytest.raises(DecodeError) as caught:
            read_everything(frame[:length])
        assert caught.value.rule in ("FRM-01", "FRM-02")
        assert length == 0 or type(caught.value) is TruncatedError


def test_every_flipped_bit_is_found(kernel, model):
    frame, _ = model
    for bit in range(8 * len(frame)):
        error = error_of(read_everything, flipped(frame, bit))
        assert error is not None, f"bit {bit} of {8 * len(frame)} can be flipped unnoticed"
        assert error.rule


@pytest.mark.parametrize("n_bytes", range(1, 65))
def test_nothing_may_follow_the_end(model, n_bytes):
    frame, _ = model
    for extra in (bytes(n_bytes), b"\xff" * n_bytes, frame[:n_bytes]):
        with pytest.raises(DecodeError) as caught:
            read_everything(frame + extra)
        assert caught.value.rule == "FRM-06"


def test_two_frames_in_a_row_are_not_a_frame(model):
    frame, _ = model
    with pytest.raises(DecodeError) as caught:
        read_everything(frame + frame)
    assert caught.value.rule == "FRM-06"


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_of_threads_are_errors_of_the_caller(model, threads):
    frame, _ = model
    for bit in range(0, 8 * len(frame), 97):
        with pytest.raises(DecodeError):
            read_everything(flipped(frame, bit), threads)


def test_bursts_of_damage_are_found(kernel, model):
    frame, _ = model
    rng = np.random.default_rng(5)
    for _ in range(600):
        bad = bytearray(frame)
        start, length = int(rng.integers(len(frame))), int(rng.integers(1, 40))
        bad[start : start + length] = rng.choice([b"\x00", b"\xff", rng.bytes(1)]) * len(
            bad[start : start + length]
        )
        if bad == frame:
            continue
        with pytest.raises(DecodeError):
            read_everything(bytes(bad))


@settings(max_examples=300)
@given(st.data())
def test_damage_under_right_checksums_gives_an_error_or_a_tensor(data):
    """Chunks are changed at will and sealed anew, so that the decoders see what checksums keep from them."""
    frame, want = MODEL
    with open_frame(frame) as reader:
        records = {n: r for n, r in reader.directory.tensors.items() if r.chunks and r.alias_of is None}
        table_sets = [bytearray(frame[c.offset : c.offset + c.n_bytes]) for c in reader.directory.table_sets]
    name = data.draw(st.sampled_from(sorted(records)))
    record = records[name]
    chunks = [bytearray(frame[c.offset : c.offset + c.n_bytes]) for c in record.chunks]
    parts = chunks + (table_sets if record.coder == CODER_CONTEXT else [])
    for _ in range(data.draw(st.integers(1, 3))):
        chunk = data.draw(st.sampled_from([c for c in parts if c]))
        place = data.draw(st.integers(0, len(chunk) - 1))
        action = data.draw(st.sampled_from(["set", "insert", "delete"]))
        if action == "delete":
            del chunk[place]
        else:
            chunk[place : place + (action == "set")] = data.draw(st.binary(min_size=1, max_size=3))
        if not any(chunks):
            return
    n_labels = data.draw(st.sampled_from([record.n_labels, record.n_labels + 1])) if record.n_labels else 0
    one = CodedTensor(
        record.dtype,
        record.shape,
        record.coder,
        n_labels,
        record.n_kept,
        record.chunk_shift,
        tuple(map(bytes, chunks)),
        record.digest,
    )
    damaged = frame_of({name: one}, table_sets=[bytes(one) for one in table_sets])
    error = error_of(read_everything, damaged)
    if error is not None:
        assert error.rule
        assert error.tensor in (name, None)
    elif record.coder != CODER_RAW:  # only raw tensors have no digest beside the checksums of their chunks
        assert_same(read_everything(damaged), {name: want[name]})


MODEL = small_model()


@settings(max_examples=300)
@given(st.binary(max_size=80))
def test_any_directory_is_read_or_refused(data):
    error = error_of(read_everything, Frame(directory=data).to_bytes())
    assert error is None or error.rule


@given(st.binary(max_size=60))
def test_any_file_is_refused(data):
    with pytest.raises(DecodeError) as caught:
        read_everything(data)
    assert caught.value.rule in {"FRM-01", "FRM-02", "FRM-03", "FRM-04", "FRM-05", "LIM-01"}


# Round trips.


@given(tensors(), st.sampled_from([1, 3]))
def test_tensors_come_back_bit_for_bit(tensor, threads):
    frame = frame_of({"w": encode_tensor(tensor)})
    assert_same(read_everything(frame, threads), {"w": tensor})


@given(shared_tensors())
def test_shared_tensors_come_back_bit_for_bit(tensor):
    assert_same(read_everything(frame_of({"w": encode_tensor(tensor)})), {"w": tensor})


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda n: n != "__metadata__")


@settings(max_examples=60)
@given(
    st.dictionaries(names, st.tuples(dtypes, st.lists(st.integers(0, 6), max_size=4), seeds), max_size=5),
    st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=3),
    st.sampled_from([1, 4]),
)
def test_checkpoints_come_back_as_they_were(specs, metadata, threads):
    model = {}
    for name, (dtype, shape, seed) in specs.items():
        n_words = int(np.prod(shape, dtype=np.int64)) * dtype.words_per_element
        words = random_words(np.random.default_rng(seed), n_words, dtype.word_bytes)
        model[name] = TensorData(dtype, tuple(shape), words)
    ties = {"tied": next(iter(model))} if model and "tied" not in model else {}
    checkpoint = Checkpoint(model | {name: model[first] for name, first in ties.items()}, ties, metadata)
    frame = encode_checkpoint(checkpoint, LOSSLESS, threads=threads).to_bytes()
    assert_same(read_everything(frame, threads), checkpoint.tensors)
    with open_frame(frame) as reader:
        assert reader.directory.metadata == metadata
        assert {n: r.alias_of for n, r in reader.directory.tensors.items() if r.alias_of is not None} == ties


@settings(max_examples=20)
@given(tensors(), seeds)
def test_encoding_is_deterministic(tensor, seed):
    checkpoint = Checkpoint({"w": tensor})
    frames = {encode_checkpoint(checkpoint, LOSSLESS, threads=threads).to_bytes() for threads in (1, 2, 2, 5)}
    assert len(frames) == 1
