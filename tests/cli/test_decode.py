from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import dcompress.numpy


@pytest.fixture
def tiny(dcz, folder):
    dcz("encode", folder / "tiny.safetensors", "-q", "--preset", "lossless")
    return folder / "tiny.dcz"


def test_default_output_is_safetensors(dcz, tiny):
    original = load_file(tiny.with_suffix(".safetensors"))
    tiny.with_suffix(".safetensors").unlink()
    result = dcz("decode", tiny)
    n_bytes = sum(array.nbytes for array in original.values())
    assert result.stdout == f"{tiny.with_suffix('.safetensors')}: 4 tensors, {n_bytes:,} bytes\n"
    assert result.stderr == ""
    decoded = load_file(tiny.with_suffix(".safetensors"))
    assert decoded.keys() == original.keys()
    for name, array in original.items():
        assert decoded[name].dtype == array.dtype
        assert decoded[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "npz"])
def test_every_kind_of_output_is_the_same_model(dcz, tiny, suffix):
    dcz("decode", tiny, "-o", tiny.with_name(f"out.{suffix}"))
    dcz("compare", tiny, tiny.with_name(f"out.{suffix}"))


def test_format_overrides_the_suffix(dcz, tiny):
    dcz("decode", tiny, "-o", tiny.with_name("out.bin"), "--format", "npz")
    with np.load(tiny.with_name("out.bin")) as arrays:
        assert "steps" in arrays
    dcz("decode", tiny, "--format", "npz")
    assert tiny.with_suffix(".npz").exists()


def test_tensor_patterns_select(dcz, tiny):
    out = tiny.with_name("out.safetensors")
    dcz("decode", tiny, "-o", out, "--tensor", "*.bias", "--tensor", "st?ps")
    assert set(load_file(out)) == {"fc.bias", "steps"}


def test_from_stdin_to_stdout(dcz, tiny):
    result = dcz("decode", "-", "-o", "-", stdin=tiny.read_bytes())
    target = tiny.with_name("out.safetensors")
    target.write_bytes(result.stdout_bytes)
    dcz("compare", tiny, target)


def test_what_a_format_cannot_hold_is_said(dcz, tiny):
    stderr = dcz("decode", tiny, "-o", tiny.with_name("out.npz")).stderr
    assert stderr == "dcz: note: npz holds no metadata; left out: author\n"
    result = dcz("decode", tiny, "-o", tiny.with_name("b.npz"), "-q")
    assert result.stdout == result.stderr == ""


def test_missing_torch_is_about_the_output(fails, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "dcompress.torch_file", None)
    out = tiny.with_name("out.pt")
    says = rf"^dcz: {re.escape(str(out))}: writing PyTorch files needs PyTorch: pip install"
    fails("decode", tiny, "-o", out, code=2, says=says)


def test_ties_survive_in_torch_files_also_if_the_first_name_is_left_out(dcz, folder):
    shared = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": shared, "b": shared, "c": shared, "d": torch.ones(1)}, folder / "tied.pt")
    dcz("encode", folder / "tied.pt", "-q")
    dcz("decode", folder / "tied.dcz", "-o", folder / "out.pt", "--tensor", "[bcd]")
    state = torch.load(folder / "out.pt")
    assert list(state) == ["b", "c", "d"]
    assert state["b"].data_ptr() == state["c"].data_ptr()
    assert torch.equal(state["b"], shared)
    stderr = dcz("decode", folder / "tied.dcz", "-o", folder / "out.safetensors").stderr
    assert "written as copies: b, c" in stderr


def test_limits_take_units(dcz, fails, tiny):
    out = tiny.with_name("out.npz")
    fails("decode", tiny, "-o", out, "-M", "1K", code=5, says=r"LIM-05.*-M \d+")
    dcz("decode", tiny, "-o", out, "-M", "0.5MiB", "-q")


def test_agrees_with_the_library_at_any_thread_count(dcz, folder):
    expected = dcompress.numpy.load_file(folder / "lenet.dcz")
    for threads in (1, 2):
        out = folder / f"out{threads}.safetensors"
        dcz("decode", folder / "lenet.dcz", "-o", out, "-T", threads)
        for name, array in load_file(out).items():
            assert array.tobytes() == expected[name].tobytes()
