"""Model files of every kind, told apart by content, then by suffix."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from dcompress.constants import DTYPE_BY_NAME, SIGNATURE
from dcompress.errors import EncodeError, UnsupportedTensorError
from dcompress.model_file import kind_of_suffix, read_checkpoint, write_model
from dcompress.stages import Checkpoint, TensorData, tensor_specs, word_dtype

F32, BF16, I64, C64, C128 = (
    DTYPE_BY_NAME[n] for n in ("float32", "bfloat16", "int64", "complex64", "complex128")
)


def data_of(dtype, shape, seed=0):
    n_bytes = int(np.prod(shape)) * dtype.element_bytes
    content = np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)
    return TensorData(dtype, shape, content.view(word_dtype(dtype.word_bytes)))


def small_model(**options):
    tensors = {
        "w": data_of(F32, (2, 3)),
        "n": data_of(I64, ()),
        "z": data_of(C64, (2,)),
        "e": data_of(F32, (0, 4)),
    }
    return Checkpoint(tensors, **options)


def same(tensors, others):
    return list(tensors) == list(others) and all(
        (tensors[n].dtype, tensors[n].shape) == (others[n].dtype, others[n].shape)
        and np.array_equal(tensors[n].words, others[n].words)
        for n in tensors
    )


SUFFIXES = [".safetensors", ".npz", ".pt", ".pth", ".th", ".pth.tar", ".bin", ".ckpt"]


def need_torch(kind):
    if kind_of_suffix(f"x{kind}") == "pt":
        pytest.importorskip("torch")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_comes_back(tmp_path, suffix):
    need_torch(suffix)
    path = tmp_path / f"model{suffix}"
    model = small_model()
    assert write_model(path, model) == ()
    assert same(read_checkpoint(path).tensors, model.tensors)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
@pytest.mark.parametrize("name", ["model", "model.xyz", "m.safetensors", "m.pt", "m.npz", "m.bin"])
def test_content_comes_before_the_suffix(tmp_path, suffix, name):
    need_torch(suffix)
    model = small_model()
    write_model(tmp_path / name, model, kind=suffix.removeprefix("."))
    assert same(read_checkpoint(tmp_path / name).tensors, model.tensors)


def test_legacy_torch_files_are_known_by_content(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"module.a": torch.ones(2)}, tmp_path / "model", _use_new_zipfile_serialization=False)
    assert list(read_checkpoint(tmp_path / "model").tensors) == ["module.a"]
    assert list(read_checkpoint(tmp_path / "model", strip_module_prefix=True).tensors) == ["a"]


def test_options_reach_the_torch_reader(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a_orig": torch.ones(2), "a_mask": torch.zeros(2)}, tmp_path / "m.pt")
    assert list(read_checkpoint(tmp_path / "m.pt").tensors) == ["a"]
    assert list(read_checkpoint(tmp_path / "m.pt", fold_masks=False).tensors) == ["a_orig", "a_mask"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.safetensors", b"", "is empty"),
        ("m.pt", b"", "is empty"),
        ("m.dcz", SIGNATURE + bytes(20), r"is a \.dcz file already"),
        ("m.pt", SIGNATURE + bytes(20), r"is a \.dcz file already"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("m.txt", b"hello, this is some text", "is no model file that can be read"),
        ("m.txt", b"textures{", "is no model file that can be read"),
        ("m", b"x", "is no model file that can be read"),
        ("m.safetensors", b"hello, this is some text", "above the limit"),
        ("m.safetensors", b"\xff" * 8 + b"{", "above the limit"),
        ("m", b"\x10" + bytes(7) + b"{}", "cut short"),
        ("m.safetensors", b"abc", "too few for a header"),
        ("m.npz", b"hello, this is some text", "damaged"),
        ("m.zip", b"PK\x03\x04" + bytes(50), "damaged"),
    ],
)
def test_files_that_are_no_models(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncodeError, match=message) as caught:
        read_checkpoint(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "m.pt")
    with pytest.raises(IsADirectoryError, match="model is a folder"):
        read_checkpoint(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(OSError, match="not a regular file"):
            read_checkpoint(tmp_path / "fifo")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_existing_file_is_kept_unless_overwriting_is_asked_for(tmp_path, suffix):
    need_torch(suffix)
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_model(path, small_model())
    assert path.read_bytes() == b"old"
    write_model(path, small_model(), overwrite=True)
    assert same(read_checkpoint(path).tensors, small_model().tensors)


def test_failure_in_mid_write_keeps_the_old_file(tmp_path):
    class Failing(dict):
        def __getitem__(self, name):
            if name == "z":
                raise EncodeError("decoder failed")
            return super().__getitem__(name)

    model = small_model()
    for suffix in (".safetensors", ".npz"):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(b"old")
        with pytest.raises(EncodeError, match="decoder failed"):
            write_model(
                path, Checkpoint(Failing(model.tensors)), specs=tensor_specs(model.tensors), overwrite=True
            )
        assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_model_can_replace_itself_while_it_is_read_lazily(tmp_path):
    path = tmp_path / "m.safetensors"
    model = small_model()
    write_model(path, model)
    write_model(path, read_checkpoint(path), overwrite=True)
    assert same(read_checkpoint(path).tensors, model.tensors)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pt"])
def test_streams_need_a_kind(kind, tmp_path):
    need_torch(f".{kind}")
    stream = io.BytesIO()
    write_model(stream, small_model(), kind=kind)
    (tmp_path / "m").write_bytes(stream.getvalue())
    assert same(read_checkpoint(tmp_path / "m").tensors, small_model().tensors)
    with pytest.raises(ValueError, match="state the kind"):
        write_model(io.BytesIO(), small_model())
    with pytest.raises(ValueError, match="kind must be one of"):
        write_model(io.BytesIO(), small_model(), kind="gguf")


def test_unknown_suffix(tmp_path):
    with pytest.raises(EncodeError, match=r"m\.onnx: the suffix must be"):
        write_model(tmp_path / "m.onnx", small_model())
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_cannot_hold_is_noted_or_refused(tmp_path):
    extra = {"values": {"epoch": 3}, "value_positions": [1]}
    model = small_model(metadata={"author": "me"}, torch_extra=extra)
    values = "holds tensors only; left out: epoch"
    assert write_model(tmp_path / "m.safetensors", model) == (f"safetensors {values}",)
    assert read_checkpoint(tmp_path / "m.safetensors").metadata == {"author": "me"}
    metadata = "holds no metadata; left out: author"
    assert write_model(tmp_path / "m.npz", model) == (f"npz {metadata}", f"npz {values}")
    wide = Checkpoint({"a": data_of(BF16, (2,)), "b": data_of(C128, (1,))})
    assert write_model(tmp_path / "w.npz", wide) == (
        "NumPy has no bfloat16, so its bits are written as unsigned integers: a",
    )
    with pytest.raises(UnsupportedTensorError, match="tensor 'b'"):
        write_model(tmp_path / "w.safetensors", wide)
    assert not (tmp_path / "w.safetensors").exists()
    pytest.importorskip("torch")
    assert write_model(tmp_path / "m.pt", model) == (f"pt {metadata}",)
    assert read_checkpoint(tmp_path / "m.pt").torch_extra == extra
    assert write_model(tmp_path / "w.pt", wide) == ()
    assert same(read_checkpoint(tmp_path / "w.pt").tensors, wide.tensors)


def test_ties_over_every_format(tmp_path):
    pytest.importorskip("torch")
    data = data_of(F32, (3,))
    model = Checkpoint({"a": data, "b": data}, {"b": "a"})
    write_model(tmp_path / "m.pt", model)
    tied = read_checkpoint(tmp_path / "m.pt")
    assert tied.ties == {"b": "a"}
    for suffix in (".safetensors", ".npz"):
        (note,) = write_model(tmp_path / f"m{suffix}", tied)
        assert note.endswith("written as copies: b")
        assert same(read_checkpoint(tmp_path / f"m{suffix}").tensors, model.tensors)


def test_specs_come_from_the_mapping_or_from_the_tensors(tmp_path):
    model = small_model()
    expected = {name: (data.dtype, data.shape) for name, data in model.tensors.items()}
    assert tensor_specs(model.tensors) == expected
    write_model(tmp_path / "m.safetensors", model)
    tensors = read_checkpoint(tmp_path / "m.safetensors").tensors
    (tmp_path / "m.safetensors").unlink()
    assert tensor_specs(tensors) == expected  # without reading a tensor


def test_safetensors_and_npz_never_import_torch(tmp_path):
    code = """
import sys
sys.modules["torch"] = None
from dcompress.errors import EncodeError
from dcompress.model_file import read_checkpoint, write_model
folder = sys.argv[1]
for suffix in ("safetensors", "npz"):
    write_model(f"{folder}/copy.{suffix}", read_checkpoint(f"{folder}/m.{suffix}"))
for work in (lambda: read_checkpoint(f"{folder}/m.pt"),
             lambda: write_model(f"{folder}/new.pt", read_checkpoint(f"{folder}/m.npz"))):
    try:
        work()
    except EncodeError as error:
        assert "pip install" in str(error), error
    else:
        raise AssertionError
"""
    for suffix in ("safetensors", "npz"):
        write_model(tmp_path / f"m.{suffix}", small_model())
    (tmp_path / "m.pt").write_bytes(b"\x80\x02.")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert not (tmp_path / "new.pt").exists()
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert (tmp_path / "copy.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
