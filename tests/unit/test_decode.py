from __future__ import annotations

import io
import os

import numpy as np
import pytest

from dcompress.coding import Codebook, FixedWidth, Labels, Planes, Raw, SplitRun, ZeroRun
from dcompress.coding.zero_run import RunStatistics
from dcompress.constants import DTYPE_BY_NAME
from dcompress.container.writer import CodedTensor, Section
from dcompress.decode import open_frame
from dcompress.errors import (
    ChecksumError,
    CorruptError,
    LimitError,
    NotDczError,
    TruncatedError,
)
from dcompress.limits import DecodeLimits
from dcompress.source import FileSource
from dcompress.stages import SharedTensor, TensorData
from tests.checks import Entry, Frame, assert_same, coded, frame_of, raises_rule, read_everything, varint
from tests.strategies import random_codebook, random_words

F32 = DTYPE_BY_NAME["float32"]
U8 = DTYPE_BY_NAME["uint8"]


def shared(n_words=3000, density=0.3, n_groups=1, n_centroids=5, seed=0, dtype=F32):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, n_centroids + 1, n_words).astype(np.uint16)
    labels[rng.random(n_words) >= density] = 0
    codebook = random_codebook(rng, dtype, n_groups, n_centroids, has_zero=True)
    return SharedTensor(dtype, (n_words // 10, 10), codebook, labels, True)


def plain(n_words=500, seed=0, dtype=F32):
    return TensorData(dtype, (n_words,), random_words(np.random.default_rng(seed), n_words, dtype.word_bytes))


def chunk_words(tensor, shift):
    return 1 << shift if shift else tensor.labels.size


def run_coder(kind, tensor, shift):
    statistics = RunStatistics(tensor.labels, tensor.n_labels, chunk_words(tensor, shift))
    return kind.fit(Codebook.of(tensor), statistics, 4, 1)[0]


def every_coder(shift, n_groups=1, dtype=F32):
    """Tensors, and the same tensors coded: each coder once, in chunks of ``1 << shift`` words."""
    tensor = shared(n_groups=n_groups, dtype=dtype)
    other = plain(dtype=dtype)
    coders = {
        "raw": (other, Raw()),
        "planes": (other, Planes.fit(other.dtype, other.words)[0]),
        "fixed": (tensor, FixedWidth(Codebook.of(tensor))),
        "labels": (tensor, Labels.fit(Codebook.of(tensor), tensor.labels, chunk_words(tensor, shift))[-1][0]),
        "zero_run": (tensor, run_coder(ZeroRun, tensor, shift)),
        "split_run": (tensor, run_coder(SplitRun, tensor, shift)),
    }
    return (
        {name: one for name, (one, _) in coders.items()},
        {name: coded(one, coder, shift) for name, (one, coder) in coders.items()},
    )


@pytest.mark.parametrize("shift", [0, 2, 5, 8])
@pytest.mark.parametrize("n_groups", [1, 6])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_coder_in_chunks(kernel, shift, n_groups, threads):
    tensors, coded_tensors = every_coder(shift, n_groups)
    frame = frame_of(coded_tensors)
    assert_same(read_everything(frame, threads), tensors)
    with open_frame(frame, threads=threads) as reader:
        for name, tensor in tensors.items():
            assert_same({name: reader.read_tensor(name)}, {name: tensor})


@pytest.mark.parametrize("name", ["uint8", "float16", "float64"])
def test_every_coder_with_words_of_every_size(kernel, name):
    for shift in (0, 4):
        tensors, coded_tensors = every_coder(shift, 2, DTYPE_BY_NAME[name])
        assert_same(read_everything(frame_of(coded_tensors)), tensors)


# Where frames come from.


def sources(frame, tmp_path):
    path = tmp_path / "model.dcz"
    path.write_bytes(frame)
    return [frame, bytearray(frame), memoryview(frame), path, str(path), io.BytesIO(frame), path.open("rb")]


def test_frames_come_from_memory_files_and_streams(tmp_path):
    tensors, coded_tensors = every_coder(5)
    for source in sources(frame_of(coded_tensors), tmp_path):
        with open_frame(source) as reader:
            assert_same(reader.read_all(), tensors)
        if isinstance(source, io.IOBase):
            source.close()


def test_frames_of_wider_buffers_are_read_as_bytes():
    frame = frame_of({"w": coded(plain(5), Raw())})
    padded = np.frombuffer(frame + bytes(-len(frame) % 4), np.uint32)
    if len(frame) % 4:
        with raises_rule(CorruptError, "FRM-06"):
            open_frame(memoryview(padded))
    else:
        open_frame(memoryview(padded)).close()


def test_files_are_closed_after_an_error(tmp_path):
    path = tmp_path / "bad.dcz"
    path.write_bytes(b"not a model")
    with raises_rule(NotDczError, "FRM-02"):
        open_frame(path)
    # An unclosed file would warn, and warnings are errors.


def test_a_file_that_shrinks_while_it_is_read_is_truncated(tmp_path):
    path = tmp_path / "model.dcz"
    frame = frame_of({"w": coded(plain(500), Raw())}, sections=[Section(7, b"section")])
    path.write_bytes(frame)
    with open_frame(path) as reader:
        os.truncate(path, len(frame) - 10)
        with raises_rule(TruncatedError, "FRM-01"):
            reader.read_tensor("w")
        with raises_rule(ChecksumError, "SEC-01"):
            reader.verify_sections()
        os.truncate(path, 0)
        with raises_rule(TruncatedError, "FRM-01"):
            reader.read_all()


def test_tensors_outlive_the_reader():
    tensors, coded_tensors = every_coder(0)
    with open_frame(frame_of(coded_tensors)) as reader:
        got = reader.read_all()
    assert_same(got, tensors)


# Aliases, order, empty tensors.


def test_aliases_are_the_very_same_tensor():
    frame = frame_of({"a": coded(plain(), Raw()), "b": "a", "c": "a"})
    got = read_everything(frame)
    assert got["a"] is got["b"] is got["c"]
    with open_frame(frame) as reader:
        np.testing.assert_array_equal(reader.read_tensor("b").words, got["a"].words)
        assert reader.read_rows("b", 2, 4).words.tolist() == got["a"].words[2:4].tolist()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 1 << 60), (0, 0)])
def test_tensors_without_elements_take_no_chunks(shape):
    frame = frame_of({"e": CodedTensor(F32, shape, 0, 0, 0, 0, (), 0)})
    assert read_everything(frame)["e"].shape == shape
    with open_frame(frame) as reader:
        assert reader.read_rows("e", 0, 0).shape == (0, *shape[1:])


def test_an_empty_frame_has_no_tensors():
    assert dict(read_everything(frame_of({}))) == {}


def test_unknown_names_are_key_errors():
    with open_frame(frame_of({})) as reader:
        for read in (reader.read_tensor, reader.read_shared, lambda name: reader.read_rows(name, 0, 1)):
            with pytest.raises(KeyError):
                read("w")


# Limits come before memory.


def sparse_bomb(n_words):
    """Return a frame of a few bytes that decodes to ``n_words`` zeros."""
    tensor = SharedTensor(F32, (16,), np.array([[5]], np.uint32), (np.arange(16) % 2).astype(np.uint16), True)
    one = coded(tensor, run_coder(ZeroRun, tensor, 0))
    table_bytes = one.chunks[0][0]
    chunk = one.chunks[0][: 1 + table_bytes] + b"\x00\x00"
    return Frame([Entry(shape=(n_words,), coder=4, n_labels=2, n_kept=0, chunks=(chunk,))]).to_bytes()


def test_bombs_are_refused_and_the_message_says_how_to_go_on():
    n_words = 1 << 40
    frame = sparse_bomb(n_words)
    with open_frame(frame) as reader:
        for read in (
            reader.read_all,
            lambda: reader.read_tensor("w"),
            lambda: reader.read_shared("w"),
            lambda: reader.read_rows("w", 0, n_words),
            lambda: reader.read_rows("w", 5, 6),
        ):
            with pytest.raises(LimitError) as caught:
                read()
            assert caught.value.rule == "LIM-05"
            assert f"max_output_bytes={1 << 32}" in str(caught.value)
            assert f"-M {4 * n_words}" in caught.value.hint


def test_bombs_within_the_limit_decode():
    assert not read_everything(sparse_bomb(1 << 16))["w"].words.any()


def test_the_limit_is_for_all_tensors_together():
    frame = frame_of({"a": coded(plain(10), Raw()), "b": coded(plain(10), Raw()), "c": "a"})
    with open_frame(frame, limits=DecodeLimits(max_output_bytes=80)) as reader:
        reader.read_all()
    with open_frame(frame, limits=DecodeLimits(max_output_bytes=79)) as reader:
        reader.read_tensor("a")
        with raises_rule(LimitError, "LIM-05"):
            reader.read_all()
    with (
        open_frame(frame, limits=DecodeLimits(max_output_bytes=39)) as reader,
        raises_rule(LimitError, "LIM-05"),
    ):
        reader.read_tensor("c")


def test_sections_have_a_limit_of_their_own():
    frame = frame_of({}, sections=[Section(9, bytes(50))])
    with open_frame(frame, limits=DecodeLimits(max_section_bytes=50)) as reader:
        assert reader.read_section(9) == bytes(50)
    with open_frame(frame, limits=DecodeLimits(max_section_bytes=49)) as reader:
        for read in (lambda: reader.read_section(9), reader.verify_sections):
            with pytest.raises(LimitError) as caught:
                read()
            assert caught.value.rule == "LIM-06"
            assert "max_section_bytes=49" in str(caught.value)


# Checksums, digests and counts.


def test_a_wrong_chunk_checksum_is_found():
    frame = bytearray(
        frame_of({"a": coded(plain(9), Raw()), "w": coded(shared(), run_coder(ZeroRun, shared(), 5), 5)})
    )
    with open_frame(bytes(frame)) as reader:
        record = reader.directory.tensors["w"]
    chunk = record.chunks[3]
    frame[chunk.offset] ^= 1
    with open_frame(bytes(frame)) as reader:
        reader.read_tensor("a")
        for read in (reader.read_all, lambda: reader.read_tensor("w"), lambda: reader.read_shared("w")):
            with pytest.raises(ChecksumError) as caught:
                read()
            assert (caught.value.rule, caught.value.tensor) == ("CHK-01", "w")
            assert caught.value.offset == chunk.offset
        # Rows of other chunks are not touched by it.
        begin, end = record.chunk_words(3)
        reader.read_rows("w", 0, begin // 10)
        with raises_rule(ChecksumError, "CHK-01"):
            reader.read_rows("w", begin // 10, end // 10)


def test_a_wrong_digest_is_found():
    for name, one in every_coder(0)[1].items():
        wrong = CodedTensor(**{**one.__dict__, "digest": one.digest ^ 1})
        if name == "raw":
            continue
        with raises_rule(ChecksumError, "DIG-01"):
            read_everything(frame_of({name: wrong}))


@pytest.mark.parametrize("kind", [ZeroRun, SplitRun])
@pytest.mark.parametrize("n_groups", [1, 3])
@pytest.mark.parametrize("name", ["float32", "float16", "uint8"])
def test_a_wrong_number_of_kept_words_is_found(kernel, kind, n_groups, name):
    tensor = shared(n_groups=n_groups, dtype=DTYPE_BY_NAME[name])
    one = coded(tensor, run_coder(kind, tensor, 0))
    read_everything(frame_of({"w": one}))
    for wrong_by in (-1, 1):
        wrong = CodedTensor(**{**one.__dict__, "n_kept": one.n_kept + wrong_by})
        with raises_rule(CorruptError, "DIG-02"):
            read_everything(frame_of({"w": wrong}))


def test_tables_must_fill_their_place():
    one = coded(shared(), FixedWidth(Codebook.of(shared())))
    n_bytes = one.chunks[0][0]
    tables, body = one.chunks[0][1 : 1 + n_bytes], one.chunks[0][1 + n_bytes :]

    def with_tables(data):
        return frame_of({"w": CodedTensor(**{**one.__dict__, "chunks": (varint(len(data)) + data + body,)})})

    read_everything(with_tables(tables))
    with raises_rule(CorruptError, "TAB-02"):
        read_everything(with_tables(tables + b"\x00"))
    with raises_rule(CorruptError, "TAB-02"):
        read_everything(with_tables(tables + b"\x01\x02\x03\x04\x05"))
    with raises_rule(CorruptError, "NUM-02"):
        huge = varint(1 << 40) + tables + body
        read_everything(frame_of({"w": CodedTensor(**{**one.__dict__, "chunks": (huge,)})}))
    with raises_rule(TruncatedError, "FRM-01"):
        read_everything(frame_of({"w": CodedTensor(**{**one.__dict__, "chunks": (b"",)})}))


def test_errors_in_a_chunk_tell_tensor_and_offset():
    one = coded(plain(9), Raw())
    wrong = CodedTensor(**{**one.__dict__, "chunks": (one.chunks[0] + b"\x00",)})
    frame = frame_of({"ok": one, "w": wrong})
    with open_frame(frame) as reader, pytest.raises(CorruptError) as caught:
        reader.read_tensor("w")
    assert (caught.value.rule, caught.value.tensor) == ("RAW-01", "w")
    assert caught.value.offset >= len(frame) - 37


# Sections.


def test_all_sections_are_verified_even_two_of_a_kind():
    sections = [Section(7, b"first"), Section(7, b"second"), Section(1000, b"unknown")]
    frame = frame_of({}, sections=sections)
    with open_frame(frame) as reader:
        reader.verify_sections()
        assert reader.read_section(7) == b"first"
        assert reader.read_section(8) is None
    for word in (b"first", b"second", b"unknown"):
        with (
            open_frame(frame.replace(word, word.upper())) as reader,
            raises_rule(ChecksumError, "SEC-01"),
        ):
            reader.verify_sections()


# Parts of tensors.


@pytest.mark.parametrize("shift", [0, 2, 5])
def test_rows_are_those_of_the_whole_tensor(kernel, shift):
    tensors, coded_tensors = every_coder(shift, 6)
    with open_frame(frame_of(coded_tensors)) as reader:
        for name, tensor in tensors.items():
            whole = tensor.gather() if isinstance(tensor, SharedTensor) else tensor
            rows = whole.words.reshape(whole.shape)
            n = whole.shape[0]
            for start, stop in [(0, n), (0, 0), (n, n), (0, 1), (n - 1, n), (3, 5), (n // 3, n // 2)]:
                part = reader.read_rows(name, start, stop)
                assert part.shape == (stop - start, *whole.shape[1:])
                np.testing.assert_array_equal(part.words.reshape(part.shape), rows[start:stop])


def test_rows_outside_the_tensor_are_index_errors():
    with open_frame(frame_of({"w": coded(plain(10), Raw())})) as reader:
        for start, stop in [(-1, 3), (0, 11), (11, 11), (5, 4), (-2, -1)]:
            with pytest.raises(IndexError):
                reader.read_rows("w", start, stop)


def test_a_tensor_without_dimensions_has_no_rows():
    tensor = TensorData(F32, (), np.array([5], np.uint32))
    with open_frame(frame_of({"w": coded(tensor, Raw())})) as reader:
        assert reader.read_tensor("w").shape == ()
        with pytest.raises(IndexError):
            reader.read_rows("w", 0, 1)


@pytest.mark.parametrize("shift", [0, 5])
@pytest.mark.parametrize("n_groups", [1, 6])
def test_the_compressed_form_gathers_to_the_tensor(kernel, shift, n_groups):
    tensors, coded_tensors = every_coder(shift, n_groups)
    with open_frame(frame_of(coded_tensors)) as reader:
        for name, tensor in tensors.items():
            got = reader.read_shared(name)
            if name in ("raw", "planes"):
                assert got is None
                continue
            np.testing.assert_array_equal(got.codebook, tensor.codebook)
            np.testing.assert_array_equal(got.labels, tensor.labels)
            assert got.labels.dtype == np.uint16
            assert_same({"w": got.gather()}, {"w": tensor})


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    _, coded_tensors = every_coder(5)
    path = tmp_path / "model.dcz"
    path.write_bytes(frame_of(coded_tensors))
    read = FileSource.read
    spans = []
    monkeypatch.setattr(
        FileSource,
        "read",
        lambda self, offset, n_bytes: spans.append((offset, n_bytes)) or read(self, offset, n_bytes),
    )
    with open_frame(path) as reader:
        spans.clear()
        record = reader.directory.tensors["labels"]
        reader.read_tensor("labels")
    assert sum(n_bytes for _, n_bytes in spans) == record.stored_bytes
    assert min(offset for offset, _ in spans) == record.chunks[0].offset
    assert max(map(sum, spans)) == record.chunks[0].offset + record.stored_bytes


def test_progress_counts_decoded_bytes():
    _, coded_tensors = every_coder(0)
    seen = []
    with open_frame(frame_of({**coded_tensors, "tied": "raw"})) as reader:
        reader.read_all(seen.append)
    assert seen == [4 * 500, 4 * 500] + [4 * 3000] * 4


def test_a_tensor_can_be_decoded_into_given_memory(kernel):
    tensors, coded_tensors = every_coder(5)
    with open_frame(frame_of(coded_tensors)) as reader:
        for name, tensor in tensors.items():
            whole = tensor.gather() if isinstance(tensor, SharedTensor) else tensor
            out = np.full(whole.words.size, 0xA5A5A5A5, np.uint32)
            assert reader.read_tensor(name, out).words is out
            np.testing.assert_array_equal(out, whole.words)
