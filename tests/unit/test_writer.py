from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dcompress.checksum import checksum
from dcompress.constants import CODER_CONTEXT, CODER_RAW, DTYPES, RUN_CODERS, SHARED_CODERS
from dcompress.container.reader import read_directory
from dcompress.container.writer import CodedTensor, Section, write_head
from dcompress.limits import DecodeLimits
from tests.checks import Entry, Frame, frame_of

names = st.text(max_size=12)
sizes = st.integers(0, 5) | st.integers(0, 1 << 20)


@st.composite
def coded_tensors(draw):
    """A tensor record that is legal, whatever its chunks hold."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(sizes, max_size=3)))
    n_words = int(np.prod(shape, dtype=object)) * dtype.words_per_element
    if n_words == 0:
        return CodedTensor(dtype, shape, CODER_RAW, 0, 0, 0, (), 0)
    coder = draw(st.integers(0, 6))
    n_labels = draw(st.integers(1, 4096)) if coder in SHARED_CODERS else 0
    n_kept = draw(st.integers(0, n_words)) if coder in RUN_CODERS else 0
    n_units = n_words if coder != CODER_CONTEXT else shape[0] if len(shape) > 1 else 1
    shifts = [shift for shift in range(2, 41) if 2 <= -(-n_units >> shift) <= 6]
    shift = draw(st.sampled_from([0, *shifts]))
    n_chunks = -(-n_units >> shift) if shift else 1
    chunks = tuple(draw(st.lists(st.binary(max_size=9), min_size=n_chunks, max_size=n_chunks)))
    digest = draw(st.integers(0, 2**32 - 1)) if coder != CODER_RAW else 0
    return CodedTensor(dtype, shape, coder, n_labels, n_kept, shift, chunks, digest)


@given(
    st.dictionaries(names, coded_tensors(), max_size=5),
    st.dictionaries(names, names, max_size=3),
    st.lists(st.builds(Section, st.integers(0, 2**64 - 1), st.binary(max_size=9)), max_size=3),
    st.lists(st.binary(max_size=200), max_size=3),
    st.data(),
)
def test_what_is_written_is_read(tensors, metadata, sections, table_sets, data):
    stored = dict(tensors)
    for name in data.draw(st.lists(names.filter(lambda name: name not in stored), max_size=3, unique=True)):
        if stored:
            tensors[name] = data.draw(st.sampled_from(sorted(stored)))
    frame = frame_of(tensors, metadata, sections, table_sets)
    directory = read_directory(frame, DecodeLimits())
    stored_sets = [frame[one.offset : one.offset + one.n_bytes] for one in directory.table_sets]
    assert stored_sets == table_sets
    assert [one.checksum for one in directory.table_sets] == list(map(checksum, table_sets))
    assert directory.version == (1, 0)
    assert list(directory.tensors) == list(tensors)
    assert directory.metadata == metadata
    assert directory.frame_bytes == len(frame)
    for name, record in directory.tensors.items():
        tensor = tensors[name]
        assert record.alias_of == (tensor if isinstance(tensor, str) else None)
        tensor = stored[tensor] if isinstance(tensor, str) else tensor
        assert (record.dtype, record.shape, record.digest) == (tensor.dtype, tensor.shape, tensor.digest)
        assert (record.coder, record.n_labels, record.chunk_shift) == (
            tensor.coder,
            tensor.n_labels,
            tensor.chunk_shift,
        )
        if record.coder in RUN_CODERS:
            assert record.n_kept == tensor.n_kept
        assert [frame[c.offset : c.offset + c.n_bytes] for c in record.chunks] == list(tensor.chunks)
        assert [c.checksum for c in record.chunks] == [checksum(chunk) for chunk in tensor.chunks]
    for section, record in zip(sections, directory.sections, strict=True):
        assert record.kind == section.kind
        assert frame[record.offset : record.offset + record.n_bytes] == section.data


def test_heads_byte_by_byte():
    # The builder of the tests was written from the layout, not from the writer.
    tensors = {
        "layer.weight": CodedTensor(DTYPES[11], (2, 3), 1, 0, 0, 0, (b"abcde",), 77),
        "layer.bias": CodedTensor(DTYPES[9], (2,), 0, 0, 0, 0, (b"wxyz",), 0),
        "head": "layer.weight",
        "none": CodedTensor(DTYPES[0], (4, 0), 0, 0, 0, 0, (), 0),
        "sparse": CodedTensor(DTYPES[11], (9,), 4, 300, 2, 2, (b"x", b"", b"z"), 5),
    }
    frame = Frame(
        [
            Entry(b"layer.weight", shape=(2, 3), coder=1, chunks=(b"abcde",), digest=77),
            Entry(b"bias", prefix=6, dtype=10, shape=(2,), chunks=(b"wxyz",)),
            Entry(b"head", alias_of=0),
            Entry(b"none", dtype=1, shape=(4, 0)),
            Entry(
                b"sparse",
                shape=(9,),
                coder=4,
                n_labels=300,
                n_kept=2,
                chunk_shift=2,
                chunks=(b"x", b"", b"z"),
                digest=5,
            ),
        ],
        metadata=[(b"k", b"v")],
        sections=[(2, b"{}")],
        table_sets=[b"set", b""],
    )
    assert frame_of(tensors, {"k": "v"}, [Section(2, b"{}")], [b"set", b""]) == frame.to_bytes()


def test_numbered_layers_cost_little_more_than_their_numbers():
    tensors = {
        f"model.layers.{k}.self_attn.q_proj.weight": CodedTensor(DTYPES[11], (0,), 0, 0, 0, 0, (), 0)
        for k in range(100)
    }
    assert len(write_head(tensors, {}, [])) < 100 * 36
