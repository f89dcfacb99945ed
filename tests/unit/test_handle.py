from __future__ import annotations

import io

import numpy as np
import pytest

import dcompress.numpy as dnp
from dcompress.coding import Raw
from dcompress.constants import DTYPE_BY_NAME
from dcompress.errors import LimitError, NotDczError
from dcompress.limits import DecodeLimits
from dcompress.stages import TensorData
from tests.checks import coded, frame_of, raises_rule
from tests.unit.test_decode import every_coder

F32 = DTYPE_BY_NAME["float32"]


@pytest.fixture(scope="module")
def model():
    """A frame of every coder in chunks of 32 words, and its tensors as arrays."""
    tensors, coded_tensors = every_coder(5, 6)
    arrays = {}
    for name, tensor in tensors.items():
        data = tensor.gather() if hasattr(tensor, "gather") else tensor
        arrays[name] = dnp.array_from_data(data)
    coded_tensors["tied"] = "labels"
    arrays["tied"] = arrays["labels"]
    scalar = TensorData(F32, (), np.array([0x40490FDB], np.uint32))
    coded_tensors["scalar"] = coded(scalar, Raw())
    arrays["scalar"] = dnp.array_from_data(scalar)
    return frame_of(coded_tensors, {"by": "test"}), arrays


def same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def test_names_shapes_and_dtypes_are_those_of_the_directory(model):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        assert file.keys() == list(file) == list(arrays)
        assert file.metadata() == {"by": "test"}
        for name, array in arrays.items():
            assert file.shape(name) == array.shape
            assert file.dtype(name) == "float32"
            part = file.get_slice(name)
            assert part.get_shape() == list(array.shape)
            assert part.get_dtype() == "float32"


@pytest.mark.parametrize("threads", [1, 3])
def test_single_tensors(model, threads):
    frame, arrays = model
    with dnp.safe_open(frame, threads=threads) as file:
        for name, array in arrays.items():
            same(file.get_tensor(name), array)


KEYS = [
    slice(None),
    slice(0, 0),
    slice(3, 9),
    slice(-4, None),
    slice(None, -1),
    slice(9, 3),
    slice(5, 10_000),
    slice(-10_000, 2),
    0,
    7,
    -1,
    np.int64(4),
    Ellipsis,
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_slices_are_those_of_the_whole_tensor(kernel, model, key):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        for name, array in arrays.items():
            if array.ndim:
                same(np.asarray(file.get_slice(name)[key]), np.asarray(array[key]))


@pytest.mark.parametrize(
    "key",
    [
        (slice(3, 9), 2),
        (4, slice(1, 5)),
        (slice(None), slice(None, None, 3)),
        (-1, -1),
        (..., 3),
        (slice(2, 7), ...),
    ],
)
def test_further_indices_apply_to_the_rows(model, key):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        for name in ("fixed", "labels", "zero_run", "split_run", "tied"):
            same(np.asarray(file.get_slice(name)[key]), np.asarray(arrays[name][key]))


def test_a_scalar_is_indexed_as_a_whole(model):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        assert file.get_slice("scalar")[...] == arrays["scalar"]


def test_an_empty_index_gives_the_whole_tensor(model):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        same(np.asarray(file.get_slice("scalar")[()]), arrays["scalar"])


@pytest.mark.parametrize("key", [10_000, -10_001])
def test_rows_that_are_not_there_are_index_errors(model, key):
    frame, _ = model
    with dnp.safe_open(frame) as file, pytest.raises(IndexError):
        file.get_slice("labels")[key]


def test_steps_are_refused(model):
    frame, _ = model
    with dnp.safe_open(frame) as file, pytest.raises(ValueError, match="step 1"):
        file.get_slice("labels")[::2]


def test_rows_by_number(model):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        same(file.get_rows("zero_run", 3, 8), arrays["zero_run"][3:8])
        for start, stop in [(-1, 3), (0, 10_000)]:
            with pytest.raises(IndexError):
                file.get_rows("zero_run", start, stop)


def test_the_compressed_form(kernel, model):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        for name in arrays:
            shared = file.get_shared(name)
            if name in ("raw", "planes", "scalar"):
                assert shared is None
            else:
                same(dnp.array_from_data(shared.gather()), arrays[name])
                np.testing.assert_array_equal(shared.mask, arrays[name].reshape(-1).view(np.uint32) != 0)


def test_unknown_names_are_key_errors(model):
    frame, _ = model
    with dnp.safe_open(frame) as file:
        for look_up in (file.get_tensor, file.get_slice, file.get_shared, file.shape, file.dtype):
            with pytest.raises(KeyError):
                look_up("nobody")


def test_limits_hold(model):
    frame, _ = model
    with dnp.safe_open(frame, limits=DecodeLimits(max_output_bytes=100)) as file:
        file.get_tensor("scalar")
        for read in (
            lambda: file.get_tensor("raw"),
            lambda: file.get_slice("raw")[0],
            lambda: file.get_shared("labels"),
        ):
            with raises_rule(LimitError, "LIM-05"):
                read()


def test_files_paths_and_streams(model, tmp_path):
    frame, arrays = model
    path = tmp_path / "model.dcz"
    path.write_bytes(frame)
    for source in (path, str(path), frame, bytearray(frame), io.BytesIO(frame)):
        with dnp.safe_open(source) as file:
            same(file.get_tensor("raw"), arrays["raw"])


def test_other_files_are_refused_and_closed(tmp_path):
    path = tmp_path / "model.dcz"
    path.write_bytes(b"\x80\x02}q\x00.")
    with raises_rule(NotDczError, "FRM-02"):
        dnp.safe_open(path)
    with pytest.raises(FileNotFoundError):
        dnp.safe_open(tmp_path / "absent.dcz")


def test_tensors_can_be_decoded_into_given_memory(model):
    frame, arrays = model
    with dnp.safe_open(frame) as file:
        for name, array in arrays.items():
            out = np.full_like(array, np.nan)
            assert file.get_tensor(name, out=out) is out
            same(out, array)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((300, 11), np.float32),
        np.zeros(3000, np.float32),
        np.zeros((300, 10), np.float64),
        np.zeros((300, 20), np.float32)[:, ::2],
        np.zeros((10, 300), np.float32).T,
        np.zeros((300, 10), ">f4"),
    ],
)
def test_memory_that_does_not_fit_is_refused(model, out):
    frame, _ = model
    before = out.tobytes()
    with dnp.safe_open(frame) as file, pytest.raises(ValueError, match="out"):
        file.get_tensor("labels", out=out)
    assert out.tobytes() == before


@pytest.mark.parametrize("name", ["raw", "labels", "zero_run"])
def test_memory_that_must_not_be_written_is_refused(kernel, model, name):
    frame, arrays = model
    out = np.zeros_like(arrays[name])
    out.flags.writeable = False
    with dnp.safe_open(frame) as file, pytest.raises(ValueError, match="out must be writable"):
        file.get_tensor(name, out=out)
