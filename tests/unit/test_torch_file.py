"""Files that torch.save wrote, friendly and hostile."""

import argparse
import io
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils import prune  # noqa: E402 - needs torch

from dcompress import torch_file  # noqa: E402
from dcompress.checkpoint import state_dict_from_checkpoint  # noqa: E402
from dcompress.errors import EncodeError, UnsupportedTensorError  # noqa: E402
from dcompress.torch_file import read_torch_file, write_torch_file  # noqa: E402

formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def loaded(checkpoint):
    return state_dict_from_checkpoint(checkpoint)


def same(a, b):
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@formats
def test_state_dict(path, zipped):
    state_dict = model().state_dict()
    torch.save(state_dict, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_torch_file(path)
    assert same(loaded(checkpoint), state_dict)
    assert loaded(checkpoint)._metadata == state_dict._metadata
    assert checkpoint.notes == ()


@formats
def test_training_checkpoint(path, zipped):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, name="x"),
        "normalizer": {"mean": torch.zeros(1), "std": torch.ones(1)},
        "loss": torch.tensor(0.5),
        "state_dict": OrderedDict(("module." + n, t) for n, t in net.state_dict().items()),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    checkpoint = read_torch_file(path)
    assert set(torch.serialization.get_safe_globals()) == before
    assert same(loaded(checkpoint), content["state_dict"])
    assert checkpoint.notes == (
        "took the state dict from 'state_dict'; left out: epoch, args, normalizer, loss, optimizer",
    )
    stripped = read_torch_file(path, strip_module_prefix=True)
    assert same(loaded(stripped), net.state_dict())
    assert stripped.notes[1:] == ("stripped 'module.' from every name",)


def test_data_parallel_metadata_is_stripped_too(path):
    torch.save(torch.nn.DataParallel(model()).state_dict(), path)
    found = loaded(read_torch_file(path, strip_module_prefix=True))
    assert same(found, model().state_dict())
    assert found._metadata == model().state_dict()._metadata


def test_prefix_that_only_some_names_have_is_kept(path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, path)
    assert list(read_torch_file(path, strip_module_prefix=True).tensors) == ["module.a", "b"]


def test_safe_globals_of_the_user_stay(path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace()}, path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_torch_file(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()


A, B = {"w": torch.zeros(1)}, {"w": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "expected", "note"),
    [
        ({"model_state_dict": A, "epoch": 1}, A, "'model_state_dict'; left out: epoch"),
        ({"model": A}, A, "took the state dict from 'model'"),
        ({"model": {"state_dict": A, "cfg": "x"}, "step": 1}, A, "'model/state_dict'; left out: step, cfg"),
        ({"ema": B, "model": A}, A, "'model'; left out: ema"),
        ({"ema": A, "epoch": 1}, A, "'ema'; left out: epoch"),
        ({"generator": A, "epoch": 1}, A, "'generator'; left out: epoch"),
        ({"state_dict": {}, "net": A}, A, "'net'; left out: state_dict"),
        ({"weights": torch.zeros(2), "net": torch.ones(1)}, None, None),
        ({}, {}, None),
    ],
)
def test_wrappers(path, content, expected, note):
    torch.save(content, path)
    checkpoint = read_torch_file(path)
    assert same(loaded(checkpoint), content if expected is None else expected)
    assert re.search(note, checkpoint.notes[0]) if note else checkpoint.notes == ()


def itself():
    content = {"a": torch.zeros(1)}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"generator": A, "discriminator": B}, "under the keys generator, discriminator"),
        ({"epoch": 1}, "no state dict found"),
        ([torch.zeros(1)], "no state dict found, but a value of type list"),
        (torch.zeros(1), "type torch.Tensor"),
        ({"state_dict": {0: torch.zeros(1)}}, "state dict key 0"),
        ({"a": torch.zeros(1), "cfg": (1, 2)}, "entry 'cfg'"),
        (itself(), "entry 'model'"),
    ],
)
def test_files_without_a_usable_state_dict(path, content, message):
    torch.save(content, path)
    with pytest.raises(EncodeError, match=message) as caught:
        read_torch_file(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_unsupported_tensor_keeps_its_class(path):
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, path)
    with pytest.raises(UnsupportedTensorError, match=r"model.pt: tensor 'a' is sparse_coo"):
        read_torch_file(path)


def test_ties_survive_a_file(path):
    weight = torch.ones(2, 3)
    torch.save({"in": weight, "other": torch.ones(2, 3), "out": weight}, path)
    checkpoint = read_torch_file(path)
    assert checkpoint.ties == {"out": "in"}
    with path.open("wb") as stream:
        write_torch_file(stream, checkpoint)
    again = torch.load(path)
    assert again["in"].data_ptr() == again["out"].data_ptr() != again["other"].data_ptr()
    assert read_torch_file(path).ties == {"out": "in"}


@formats
def test_pruning_masks_are_folded(path, zipped):
    net = model()
    with torch.no_grad():
        net[0].weight[0] = torch.tensor([-0.5, 0.25, -0.125, 2.0])
    prune.random_unstructured(net[0], "weight", amount=0.5)
    prune.identity(net[1], "bias")
    with torch.no_grad():
        net[0].weight_orig[net[0].weight_mask == 0] = -1.0  # times zero is -0.0
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert "0.weight_orig" in read_torch_file(path, fold_masks=False).tensors
    checkpoint = read_torch_file(path)
    assert checkpoint.notes == ("folded 2 pruning masks into their weights",)
    found = loaded(checkpoint)
    assert found._metadata == net.state_dict()._metadata
    for module in net:
        prune.remove(module, "weight" if isinstance(module, torch.nn.Linear) else "bias")
    expected = net.state_dict()
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    weight = found["0.weight"]
    assert not torch.signbit(weight[weight == 0]).any()
    model().load_state_dict(found)


def test_folding_is_exact_and_keeps_ties_and_strangers(path):
    orig = torch.tensor([0x7FC12345, -0x80000000, 0x7F800000, 0x3F800000], dtype=torch.int32).view(
        torch.float32
    )
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
    content = {
        "a_orig": orig,
        "a_mask": mask,
        "b_orig": orig,
        "b_mask": mask,
        "soft_orig": torch.tensor([-2.0, -3.0]),
        "soft_mask": torch.tensor([0.5, 0.0]),
        "spectral_orig": torch.ones(2),  # spectral_norm has no mask
        "lone_mask": torch.ones(2),
        "odd_orig": torch.ones(2),
        "odd_mask": torch.ones(3),
        "both": torch.ones(1),
        "both_orig": torch.ones(1),
        "both_mask": torch.zeros(1),
    }
    torch.save(content, path)
    checkpoint = read_torch_file(path)
    assert list(checkpoint.tensors) == [
        *("a", "b", "soft", "spectral_orig", "lone_mask", "odd_orig", "odd_mask"),
        *("both", "both_orig", "both_mask"),
    ]
    assert checkpoint.tensors["a"].words.tolist() == [0x7FC12345, 0x80000000, 0, 0x3F800000]
    assert checkpoint.tensors["soft"].words.view("<f4").tolist() == [-1.0, 0.0]
    assert checkpoint.tensors["soft"].words[1] == 0
    assert checkpoint.ties == {"b": "a"}


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL"],))


class Harmless:
    pass


@formats
@pytest.mark.parametrize("kind", [Evil, Harmless])
def test_unsafe_pickle_is_refused_in_one_line(path, tmp_path, monkeypatch, zipped, kind):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    torch.save({"state_dict": A, "extra": kind()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(EncodeError, match="only unsafe pickle would load; if you trust the file") as caught:
        read_torch_file(path)
    name = f"{os.name if os.name == 'nt' else 'posix'}.mkdir" if kind is Evil else f"{__name__}.Harmless"
    assert f"({name})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_numpy_scalars_are_refused_in_one_line(path):
    torch.save({"state_dict": A, "best": np.float64(1.0)}, path)
    with pytest.raises(EncodeError, match="numpy"):
        read_torch_file(path)


def test_environment_cannot_switch_safety_off(path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": A, "extra": Harmless()}, path)
    with pytest.raises(EncodeError, match="unsafe pickle"):
        read_torch_file(path)


def test_old_torch_is_refused(path, monkeypatch):
    torch.save(A, path)
    for version in ("2.9.1+cu128", "2.5.0", "1.13.1"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(EncodeError, match="CVE-2025-32434"):
            read_torch_file(path)
    for version in ("2.10.0", "2.13.0a0+git1", "3.0.0"):
        monkeypatch.setattr(torch, "__version__", version)
        assert len(read_torch_file(path).tensors) == 1


def test_other_zips_and_pickles(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/code.py", "")
        archive.writestr("a/constants.pkl", "")
        archive.writestr("a/data.pkl", "")
    with pytest.raises(EncodeError, match="TorchScript"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(EncodeError, match="holds no PyTorch checkpoint"):
        read_torch_file(path)
    for content in (pickle.dumps({"a": 1}), pickle.dumps(A), b"", b"\x80", b"\x80\x02.", b"text", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(EncodeError, match="damaged, or not a PyTorch file") as caught:
            read_torch_file(path)
        assert "\n" not in str(caught.value)


def test_zip_without_checksums(path):
    from torch.utils.serialization import config

    with config.patch("save.compute_crc32", False):
        torch.save(A, path)
    assert same(loaded(read_torch_file(path)), A)


def test_name_that_torch_would_take_for_safetensors(tmp_path):
    torch.save(A, tmp_path / "m.safetensors")
    assert same(loaded(read_torch_file(tmp_path / "m.safetensors")), A)


def test_flipped_payload_bits_and_truncations_of_a_zip(path):
    tensors = {"a": torch.arange(16.0), "b": torch.arange(5)}
    torch.save(tensors, path)
    good = path.read_bytes()
    for n in range(0, len(good), 7):
        path.write_bytes(good[:n])
        with pytest.raises(EncodeError):
            read_torch_file(path)
    for offset in range(len(good)):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ (1 << offset % 8)]) + good[offset + 1 :])
        try:
            found = loaded(read_torch_file(path))
        except EncodeError as error:
            assert "\n" not in str(error)  # noqa: PT017 - not every flip is an error
        else:
            assert same(found, tensors)


def test_truncations_of_a_legacy_file(path):
    torch.save({"a": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    for n in range(len(good)):
        path.write_bytes(good[:n])
        with pytest.raises(EncodeError):
            read_torch_file(path)


def test_missing_file_and_folder(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch_file(path)
    with pytest.raises(IsADirectoryError if os.name != "nt" else PermissionError):
        read_torch_file(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps the file")
def test_large_files_are_mapped_and_may_be_replaced_meanwhile(path, monkeypatch):
    monkeypatch.setattr(torch_file, "_MAP_ABOVE", 0)
    torch.save({"a": torch.arange(5.0)}, path)
    checkpoint = read_torch_file(path)
    other = path.with_name("other")
    torch.save({"b": torch.zeros(5)}, other)
    other.replace(path)
    assert loaded(checkpoint)["a"].tolist() == [0, 1, 2, 3, 4]
    assert "model.pt (deleted)" in Path("/proc/self/maps").read_text()


def test_small_files_may_be_cut_meanwhile(path):
    torch.save({"a": torch.arange(5.0)}, path)
    checkpoint = read_torch_file(path)
    path.write_bytes(b"")
    assert loaded(checkpoint)["a"].tolist() == [0, 1, 2, 3, 4]


def test_stream_that_cannot_seek(path):
    class Pipe(io.RawIOBase):
        content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    torch.save(model().state_dict(), path)
    pipe = Pipe()
    write_torch_file(pipe, read_torch_file(path))
    path.write_bytes(pipe.content)
    assert same(loaded(read_torch_file(path)), model().state_dict())
