"""npz files, with NumPy itself as oracle."""

import io
import struct
import zipfile

import numpy as np
import pytest

from dcompress.constants import DTYPE_BY_NAME, DTYPES
from dcompress.errors import EncodeError, UnsupportedTensorError
from dcompress.npz_file import read_npz, write_npz
from dcompress.stages import TensorData, word_dtype

NATIVE = [d for d in DTYPES if not d.name.startswith(("bfloat", "float8", "float4", "complex32"))]
AS_BITS = [d for d in DTYPES if d not in NATIVE]
F32 = DTYPE_BY_NAME["float32"]


def data_of(dtype, shape, seed=0):
    n_bytes = int(np.prod(shape)) * dtype.element_bytes
    content = np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)
    if dtype.name == "bool":
        content &= 1
    return TensorData(dtype, shape, content.view(word_dtype(dtype.word_bytes)))


def write(path, tensors, **options):
    with path.open("wb") as stream:
        return write_npz(stream, {n: (d.dtype, d.shape) for n, d in tensors.items()}, tensors, **options)


def same(tensors, others):
    return list(tensors) == list(others) and all(
        (tensors[n].dtype, tensors[n].shape) == (others[n].dtype, others[n].shape)
        and np.array_equal(tensors[n].words, others[n].words)
        for n in tensors
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.npz"


@pytest.mark.parametrize("dtype", NATIVE, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,), (2, 0, 3)])
def test_native_dtypes_come_back_and_numpy_reads_them(path, dtype, shape):
    tensors = {"x/y.z": data_of(dtype, shape)}
    assert write(path, tensors) == ()
    assert same(read_npz(path).tensors, tensors)
    with np.load(path, allow_pickle=False) as loaded:
        assert loaded.files == ["x/y.z"]
        array = loaded["x/y.z"]
    assert (array.dtype.name, array.shape) == (dtype.name, shape)
    assert array.tobytes() == tensors["x/y.z"].words.tobytes()


@pytest.mark.parametrize("dtype", AS_BITS, ids=lambda d: d.name)
def test_other_dtypes_are_written_as_bits_with_a_note(path, dtype):
    data = data_of(dtype, (2, 3))
    (note,) = write(path, {"a": data_of(F32, (1,)), "x": data})
    assert note == f"NumPy has no {dtype.name}, so its bits are written as unsigned integers: x"
    with np.load(path, allow_pickle=False) as loaded:
        array = loaded["x"]
    assert (array.dtype, array.shape) == (np.dtype(f"u{dtype.element_bytes}"), (2, 3))
    assert array.tobytes() == data.words.tobytes()


def test_ties_are_written_as_copies_with_a_note(path):
    data = data_of(F32, (2,))
    assert write(path, {"a": data, "b": data}, ties={"b": "a"}) == (
        "npz has no tied tensors, so these are written as copies: b",
    )
    assert same(read_npz(path).tensors, {"a": data, "b": data})


def test_equal_models_make_equal_files_and_empty_ones_are_fine(path):
    tensors = {"b": data_of(F32, (2,)), "a": data_of(F32, (3,), 1)}
    streams = [io.BytesIO(), io.BytesIO()]
    for stream in streams:
        write_npz(stream, {n: (d.dtype, d.shape) for n, d in tensors.items()}, tensors)
    assert streams[0].getvalue() == streams[1].getvalue()
    write(path, {})
    assert dict(read_npz(path).tensors) == {}


def test_stream_that_cannot_seek(path):
    tensors = {"a": data_of(F32, (3,)), "b": data_of(F32, ())}

    class Pipe(io.RawIOBase):
        content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    write_npz(pipe, {n: (d.dtype, d.shape) for n, d in tensors.items()}, tensors)
    path.write_bytes(pipe.content)
    assert same(read_npz(path).tensors, tensors)


@pytest.mark.parametrize("names", [["a\0b"], ["\ud800"], ["a", "a.npy"]])
def test_names_that_npz_cannot_hold(path, names):
    with pytest.raises(EncodeError, match="tensor"):
        write(path, {name: data_of(F32, (1,)) for name in names})


def test_a_tensor_that_is_not_what_was_announced():
    with pytest.raises(ValueError, match="not what was announced"):
        write_npz(io.BytesIO(), {"a": (F32, (2,))}, {"a": data_of(F32, (1, 2))})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(path, save):
    matrix = np.arange(6, dtype="f4").reshape(2, 3)
    save(path, matrix, fortran=np.asfortranarray(matrix), big=matrix.astype(">f4"), view=matrix[:, ::2])
    tensors = read_npz(path).tensors
    assert list(tensors) == ["fortran", "big", "view", "arr_0"]
    for name, array in [("arr_0", matrix), ("fortran", matrix), ("big", matrix), ("view", matrix[:, ::2])]:
        assert tensors[name].dtype == F32
        assert tensors[name].shape == array.shape
        assert tensors[name].words.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([object()]),
        np.zeros(1, "M8[s]"),
        np.zeros(1, [("a", "f4")]),
        np.zeros(1, "g"),
    ],
    ids=lambda array: array.dtype.name,
)
def test_arrays_that_are_no_tensors(path, array):
    np.savez(path, good=np.zeros(2), x=array)
    with pytest.raises(UnsupportedTensorError, match=r"m.npz: array 'x': element type"):
        read_npz(path)


def npy(descr, shape, payload=b"", version=(1, 0)):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + payload


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("x.npy", npy("<f4", (1 << 33,)), "does not fit"),
        ("x.npy", npy("<f4", (2,), bytes(7)), "does not fit"),
        ("x.npy", npy("<f4", (1,), bytes(8)), "does not fit"),
        ("x.npy", npy("<f4", (-1,), bytes(4)), "does not fit"),
        ("x.npy", npy("<f4", (1,), bytes(4), version=(9, 0)), "npy version"),
        ("x.npy", npy("nonsense", (1,)), "damaged"),
        ("x.npy", npy("<f4", (((1,),),)), "damaged"),
        ("x.npy", b"", "damaged"),
        ("x.npy", b"\x93NUMPY\1\0\5\0{((((", "damaged"),
        ("readme.txt", b"hello", "not an array"),
    ],
)
def test_hostile_members(path, member, content, message):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    with pytest.raises(EncodeError, match=message) as caught:
        read_npz(path)
    assert "m.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_duplicate_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy("|u1", (1,), b"1"))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", npy("|u1", (1,), b"2"))
    with pytest.raises(EncodeError, match="array 'x' is there twice"):
        read_npz(path)


def test_every_truncation_and_nearly_every_flip_is_refused(path):
    tensors = {"a": data_of(F32, (3,)), "b": data_of(DTYPE_BY_NAME["int8"], (5,))}
    write(path, tensors)
    good = path.read_bytes()
    for n in range(len(good)):
        path.write_bytes(good[:n])
        with pytest.raises(EncodeError):
            read_npz(path)
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            found = read_npz(path).tensors
        except EncodeError:
            continue
        # What passes is in names and fields of the zip that no reader looks at, never in values.
        assert [d.words.tolist() for d in found.values()] == [d.words.tolist() for d in tensors.values()][
            : len(found)
        ]


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        read_npz(path)
