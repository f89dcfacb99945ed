"""safetensors files, against the safetensors library as oracle."""

import gc
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcompress.constants import DTYPE_BY_NAME, DTYPES
from dcompress.errors import EncodeError, UnsupportedTensorError
from dcompress.safetensors_file import read_safetensors, write_safetensors
from dcompress.stages import TensorData, word_dtype

F32 = DTYPE_BY_NAME["float32"]
HELD = [d for d in DTYPES if d.name not in ("complex32", "complex128")]


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def frame(header, payload=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def data_of(dtype, shape, seed=0):
    n_words = math.prod(shape) * dtype.words_per_element
    content = np.random.default_rng(seed).integers(0, 256, n_words * dtype.word_bytes, np.uint8)
    if dtype.name == "bool":
        content &= 1
    return TensorData(dtype, shape, content.view(word_dtype(dtype.word_bytes)))


def written(tensors, **options):
    stream = io.BytesIO()
    specs = {name: (data.dtype, data.shape) for name, data in tensors.items()}
    notes = write_safetensors(stream, specs, tensors, **options)
    return stream.getvalue(), notes


def same(tensors, others):
    return list(tensors) == list(others) and all(
        (tensors[n].dtype, tensors[n].shape) == (others[n].dtype, others[n].shape)
        and np.array_equal(tensors[n].words, others[n].words)
        for n in tensors
    )


@pytest.fixture
def read(tmp_path):
    def read_bytes(content):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return read_safetensors(path)

    return read_bytes


SMALL = frame({"a": entry("F32", [2], 0, 8), "b": entry("U8", [3], 8, 11)}, bytes(range(11)))

HOSTILE = {
    "empty file": (b"", "too few"),
    "7 bytes": (bytes(7), "too few"),
    "no header": (bytes(8), "not a JSON object"),
    "length 2^40": (frame(b"{}", length=1 << 40), "above the limit"),
    "length 2^64-1": (frame(b"{}", length=(1 << 64) - 1), "above the limit"),
    "length beyond the file": (frame(b"{}", length=3), "cut short"),
    "array": (frame(b"[]"), "not a JSON object"),
    "leading space": (frame(b" {}"), "not a JSON object"),
    "trailing comma": (frame(b'{"a":1,}'), "not UTF-8 JSON"),
    "two objects": (frame(b"{}{}"), "not UTF-8 JSON"),
    "NaN": (frame(b'{"a":NaN}'), "not UTF-8 JSON"),
    "not UTF-8": (frame(b'{"\xff":1}'), "not UTF-8 JSON"),
    "lone surrogate": (frame({"\ud800": entry("U8", [1], 0, 1)}, b"x"), "not UTF-8 JSON"),
    "deep nesting": (frame(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not UTF-8 JSON"),
    "integer of 10,000 digits": (frame(b'{"a":' + b"1" * 10_000 + b"}"), "not UTF-8 JSON"),
    "duplicate name": (
        frame(b'{"a":%s,"a":%s}' % ((json.dumps(entry("U8", [1], 0, 1)).encode(),) * 2), b"x"),
        "key 'a' twice",
    ),
    "duplicate field": (
        frame(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "twice",
    ),
    "duplicate metadata": (frame(b'{"__metadata__":{"x":"1","x":"2"}}'), "key 'x' twice"),
    "metadata list": (frame({"__metadata__": []}), "must be an object"),
    "metadata number": (frame({"__metadata__": {"x": 1}}), "metadata 'x' must be a string"),
    "metadata surrogate": (frame({"__metadata__": {"x": "\udfff"}}), "metadata 'x' is not valid Unicode"),
    "entry no object": (frame({"a": 1}), "tensor 'a': header entry"),
    "field missing": (frame({"a": {"dtype": "U8", "shape": [1]}}, b"x"), "tensor 'a': header entry"),
    "field unknown": (frame({"a": {**entry("U8", [1], 0, 1), "x": 1}}, b"x"), "tensor 'a': header entry"),
    "dtype list": (frame({"a": entry([], [1], 0, 1)}, b"x"), "tensor 'a': dtype"),
    "shape null": (frame({"a": entry("U8", None, 0, 1)}, b"x"), "tensor 'a': shape"),
    "shape negative": (frame({"a": entry("U8", [-1, -1], 0, 1)}, b"x"), "tensor 'a': shape"),
    "shape bool": (frame({"a": entry("U8", [True], 0, 1)}, b"x"), "tensor 'a': shape"),
    "shape float": (frame({"a": entry("U8", [1.0], 0, 1)}, b"x"), "tensor 'a': shape"),
    "shape string": (frame({"a": entry("U8", "1", 0, 1)}, b"x"), "tensor 'a': shape"),
    "dimension 2^63": (frame({"a": entry("U8", [1 << 63, 0], 0, 0)}), "tensor 'a': shape"),
    "product overflows": (frame({"a": entry("U8", [1 << 32, 1 << 32], 0, 0)}), "too large"),
    "zero excuses nothing": (frame({"a": entry("U8", [0, 1 << 32, 1 << 32], 0, 0)}), "too large"),
    "2^60 bytes": (frame({"a": entry("U8", [1 << 60], 0, 1 << 60)}, b"x"), "cut short"),
    "offsets swapped": (frame({"a": entry("U8", [1], 1, 0)}, b"x"), "tensor 'a': data_offsets"),
    "offsets negative": (frame({"a": entry("U8", [1], -1, 0)}, b"x"), "tensor 'a': data_offsets"),
    "one offset": (frame({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1]}}, b"x"), "data_offsets"),
    "size too small": (frame({"a": entry("F32", [2], 0, 4)}, bytes(4)), "needs 8 bytes, not 4"),
    "size too large": (frame({"a": entry("F32", [1], 0, 8)}, bytes(8)), "needs 4 bytes, not 8"),
    "hole": (frame({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"xyz"), "'b': .* hole"),
    "hole at the start": (frame({"a": entry("U8", [1], 1, 2)}, b"xy"), "'a': .* hole"),
    "overlap": (
        frame({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"xyz"),
        "'b': .* overlaps",
    ),
    "same bytes": (frame({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 0, 1)}, b"x"), "overlaps"),
    "empty one inside": (
        frame({"a": entry("U8", [2], 0, 2), "b": entry("U8", [0], 1, 1)}, b"xy"),
        "overlaps",
    ),
    "beyond the file": (frame({"a": entry("U8", [2], 0, 2)}, b"x"), "cut short"),
    "bytes at the end": (frame({"a": entry("U8", [1], 0, 1)}, b"xy"), "after the last tensor"),
    "F4 odd": (frame({"a": entry("F4", [2, 3], 0, 3)}, bytes(3)), "even last dimension"),
    "F4 0-d": (frame({"a": entry("F4", [], 0, 1)}, bytes(1)), "even last dimension"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_refused_with_file_and_tensor_named(read, content, message):
    with pytest.raises(EncodeError, match=message) as caught:
        read(content)
    assert "model.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["F6_E2M3", "C32", "C128", "f32", "", "F8_E4M3FN", "object"])
def test_unknown_dtype_is_unsupported(read, dtype):
    with pytest.raises(UnsupportedTensorError, match=r"tensor 'a': dtype .* no counterpart"):
        read(frame({"a": entry(dtype, [4], 0, 4)}, bytes(4)))


def test_every_truncation_is_refused(read):
    read(SMALL)
    for n in range(len(SMALL)):
        with pytest.raises(EncodeError):
            read(SMALL[:n])
    with pytest.raises(EncodeError):
        read(SMALL + b"x")


def test_every_flipped_header_bit_raises_nothing_but_encode_errors(read):
    for bit in range(8 * (len(SMALL) - 11)):
        content = bytearray(SMALL)
        content[bit // 8] ^= 1 << bit % 8
        try:
            for data in read(bytes(content)).tensors.values():
                assert data.words.size
        except EncodeError:
            pass


def test_accepts_what_the_library_accepts(read):
    checkpoint = read(frame({"__metadata__": None, "a": entry("U8", [1], 0, 1)}, b"x"))
    assert checkpoint.metadata == {}
    assert read(frame(b"{}   ")).tensors == {}
    names = ["../x", "a\0b", "", "e\u0301", "\u00e9", "__Metadata__", "\U0001f600"]
    header = {name: entry("U8", [1], n, n + 1) for n, name in enumerate(names)}
    checkpoint = read(frame(header, bytes(range(7))))
    assert [(n, d.words.tolist()) for n, d in checkpoint.tensors.items()] == [
        (n, [i]) for i, n in enumerate(names)
    ]


def test_order_is_that_of_the_header_and_odd_offsets_are_aligned(read):
    header = {"z": entry("F32", [1], 1, 5), "a": entry("BOOL", [1], 0, 1), "0": entry("U8", [0, 9], 1, 1)}
    checkpoint = read(frame(header, b"\1" + struct.pack("<f", 1.5)))
    assert list(checkpoint.tensors) == ["z", "a", "0"]
    words = checkpoint.tensors["z"].words
    assert words.flags.aligned
    assert words.flags.writeable
    assert words.view("<f4").tolist() == [1.5]
    assert checkpoint.tensors["0"].shape == (0, 9)
    assert checkpoint.tensors.specs == {n: (d.dtype, d.shape) for n, d in checkpoint.tensors.items()}


@pytest.mark.parametrize("dtype", HELD, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4), (0,), (2, 0, 3), (1, 1)])
def test_round_trip_of_every_dtype_and_shape(read, dtype, shape):
    data = data_of(dtype, shape)
    if dtype.name == "float4_e2m1fn_x2" and not shape:
        with pytest.raises(UnsupportedTensorError, match=r"'x': safetensors cannot hold 0-d"):
            written({"x": data})
        return
    content, notes = written({"x": data}, metadata={"k": "v"})
    checkpoint = read(content)
    assert same(checkpoint.tensors, {"x": data})
    assert (notes, checkpoint.metadata, checkpoint.ties) == ((), {"k": "v"}, {})


@pytest.mark.parametrize("name", ["complex32", "complex128"])
def test_dtypes_that_the_format_lacks(name):
    stream = io.BytesIO()
    with pytest.raises(
        UnsupportedTensorError, match=rf"tensor 'x': safetensors cannot hold {name}; write a .pt"
    ):
        write_safetensors(stream, {"x": (DTYPE_BY_NAME[name], (1,))}, {})
    assert stream.getvalue() == b""


@pytest.mark.parametrize(("names", "metadata"), [(["__metadata__"], {}), (["\ud800"], {}), (["a"], {"x": 1})])
def test_names_and_metadata_that_the_format_cannot_hold(names, metadata):
    with pytest.raises(EncodeError):
        written({name: data_of(F32, (1,)) for name in names}, metadata=metadata)


def test_a_tensor_that_is_not_what_was_announced():
    with pytest.raises(ValueError, match="not what was announced"):
        write_safetensors(io.BytesIO(), {"a": (F32, (2,))}, {"a": data_of(F32, (1, 2))})


def test_ties_are_written_as_copies_with_a_note(read):
    data = data_of(F32, (2, 2))
    content, notes = written({"a": data, "b": data}, ties={"b": "a"})
    assert same(read(content).tensors, {"a": data, "b": data})
    assert notes == ("safetensors has no tied tensors, so these are written as copies: b",)


def test_one_tensor_at_a_time_to_a_stream_that_cannot_seek():
    class Pipe(io.RawIOBase):
        content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    looked_up = []

    class Lazy(dict):
        def __getitem__(self, name):
            looked_up.append(name)
            return super().__getitem__(name)

    tensors = Lazy(a=data_of(DTYPE_BY_NAME["bool"], (3,)), b=data_of(F32, (2,)), c=data_of(DTYPES[8], ()))
    specs = {name: (data.dtype, data.shape) for name, data in tensors.items()}
    pipe = Pipe()
    write_safetensors(pipe, specs, tensors)
    assert looked_up == ["c", "b", "a"]
    assert pipe.content == written(dict(tensors))[0]
    header = json.loads(pipe.content[8 : 8 + struct.unpack("<Q", pipe.content[:8])[0]])
    assert list(header) == ["a", "b", "c"]
    assert [header[n]["data_offsets"] for n in "abc"] == [[16, 19], [8, 16], [0, 8]]


def test_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    for change in ("shrunk", "replaced", "written"):
        path.write_bytes(SMALL)
        os.utime(path, ns=(0, 0))
        tensors = read_safetensors(path).tensors
        assert tensors["b"].words.tolist() == [8, 9, 10]
        if change == "shrunk":
            os.truncate(path, len(SMALL) - 1)
        elif change == "replaced":
            (tmp_path / "other").write_bytes(SMALL)
            (tmp_path / "other").replace(path)
        else:
            path.write_bytes(SMALL)
        with pytest.raises(EncodeError, match=r"m.safetensors: tensor 'b': the file changed"):
            tensors["b"]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tensors["a"]


def test_lazy_tensors_survive_pickling(read):
    tensors = read(SMALL).tensors
    assert same(pickle.loads(pickle.dumps(tensors)), tensors)


def test_many_tensors_hold_no_file_descriptors(read):
    n = 3000
    checkpoint = read(frame({str(i): entry("U8", [1], i, i + 1) for i in range(n)}, bytes(n)))
    held = list(checkpoint.tensors.values())
    assert len(held) == n
    del held
    gc.collect()  # an unclosed file would warn


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_one_tensor(tmp_path):
    n_tensors, n_bytes = 20, 16 << 20
    header = {str(i): entry("U8", [n_bytes], i * n_bytes, (i + 1) * n_bytes) for i in range(n_tensors)}
    with (tmp_path / "big.safetensors").open("wb") as stream:
        stream.write(frame(header))
        stream.truncate(stream.tell() + n_tensors * n_bytes)
    code = """
import io, resource, sys
import numpy
from dcompress.safetensors_file import read_safetensors, write_safetensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = read_safetensors(sys.argv[1]).tensors
for data in tensors.values():
    assert not data.words.any()
with open("/dev/null", "wb") as stream:
    write_safetensors(stream, tensors.specs, tensors)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before, "torch" in sys.modules, "safetensors" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "big.safetensors")]
    grown, *loaded = subprocess.check_output(command, text=True).split()
    assert int(grown) < 3 * n_bytes // 1024  # one held by the loop, one being read
    assert loaded == ["False", "False"]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(HELD), st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)),
        max_size=8,
    ),
    st.dictionaries(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=8)] * 2, max_size=3),
)
def test_any_model_comes_back_and_the_library_reads_it(tmp_path_factory, specs, metadata):
    safetensors = pytest.importorskip("safetensors")
    tensors = {name: data_of(*spec, seed=n) for n, (name, spec) in enumerate(specs.items())}
    content, _ = written(tensors, metadata=metadata)
    path = tmp_path_factory.mktemp("any") / "m.safetensors"
    path.write_bytes(content)
    checkpoint = read_safetensors(path)
    assert same(checkpoint.tensors, tensors)
    assert checkpoint.metadata == metadata
    found = dict(safetensors.deserialize(content))
    assert {n: bytes(v["data"]) for n, v in found.items()} == {
        n: d.words.tobytes() for n, d in tensors.items()
    }
    assert {n: v["dtype"] for n, v in found.items()} == {
        n: d.dtype.safetensors_name for n, d in tensors.items()
    }


@pytest.mark.parametrize("dtype", HELD, ids=lambda d: d.name)
def test_library_and_torch_agree_both_ways(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    data = data_of(dtype, (3, 4))
    reference = torch.from_numpy(data.words.view(np.uint8)).view(getattr(torch, dtype.name)).reshape(3, 4)
    library.save_file({"x": reference}, tmp_path / "theirs", {"k": "v"})
    (tmp_path / "ours").write_bytes(written({"x": data}, metadata={"k": "v"})[0])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert same(read_safetensors(tmp_path / "theirs").tensors, {"x": data})
    loaded = library.load_file(tmp_path / "ours")["x"]
    assert loaded.dtype == reference.dtype
    assert torch.equal(loaded.view(torch.uint8), reference.view(torch.uint8))


def test_a_file_of_the_library_is_written_back_byte_for_byte(tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensors = {
        f'{d.name}/"\u00e9\n\x7f\u2028': torch.zeros(3, 2, dtype=getattr(torch, d.name)) for d in HELD[:-4]
    }
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0), "a": torch.arange(5)}
    library.save_file(tensors, tmp_path / "m", {"z": "1/2", "a": "\u2028\x01"})
    checkpoint = read_safetensors(tmp_path / "m")
    content, _ = written(checkpoint.tensors, metadata=checkpoint.metadata)
    assert content == (tmp_path / "m").read_bytes()
