from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

not_root = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="permissions do not bind root"
)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("", 2, "Missing argument 'MODEL'"),
        ("gone.safetensors", 1, "gone.safetensors: No such file"),
        (".", 1, "folder"),
        ("-", 2, "standard input"),
        ("lenet.dcz", 2, "a .dcz file already"),
        ("tiny.safetensors -o nowhere/out.dcz", 1, "folder does not exist"),
        ("tiny.safetensors -o .", 1, "output is a folder"),
        ("tiny.safetensors -o tiny.safetensors/out.dcz", 1, "not a folder"),
        ("tiny.safetensors -o lenet.dcz", 1, "exists already; add -f"),
        ("tiny.safetensors -o tiny.safetensors -f", 2, "is the input"),
        ("tiny.safetensors -o /dev/null -f", 1, "not a regular file"),
        ("tiny.safetensors --preset blanced", 2, "did you mean 'balanced'"),
        ("tiny.safetensors --set fcc.*:bits=3", 2, "'fcc.*' matches no tensor"),
        ("tiny.safetensors --set fc*:bist=3", 2, "did you mean 'bits'"),
        ("tiny.safetensors --set fc*", 2, "PATTERN:"),
        ("tiny.safetensors --set steps:bits=3", 2, "cannot be pruned or shared"),
        ("tiny.safetensors --exclude head", 2, "'head' matches no tensor"),
        ("tiny.safetensors --sparsity 1.2", 2, "dcz: --sparsity must be a fraction"),
        ("tiny.safetensors --bits 40", 2, "bits"),
        ("tiny.safetensors --bits four", 2, "--bits"),
        ("tiny.safetensors --recipe gone.toml", 1, "gone.toml: No such file"),
        ("tiny.safetensors --recipe tiny.safetensors", 2, "not valid TOML"),
        ("tiny.safetensors -T -3", 2, "less than 0"),
        ("tiny.safetensors -o - --json", 2, "share stdout"),
        ("tiny.safetensors --nonsense", 2, "--nonsense"),
    ],
)
def test_encode(fails, folder, listing, monkeypatch, args, code, says):
    monkeypatch.chdir(folder)
    fails("encode", *args.split(), code=code, says=says)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("gone.dcz", 1, "No such file"),
        (".", 1, "directory"),
        ("tiny.safetensors -o out.npz", 3, "tiny.safetensors: this is not a .dcz file"),
        ("lenet.dcz", 1, "lenet.safetensors: output file exists already; add -f"),
        ("lenet.dcz -o out.zip", 2, "suffix"),
        ("lenet.dcz -o nowhere/out.pt", 1, "folder does not exist"),
        ("lenet.dcz -o lenet.dcz --format npz -f", 2, "is the input"),
        ("lenet.dcz -o out.npz --tensor conv*", 2, r"'conv\*' matches no tensor"),
        ("lenet.dcz -o out.npz -M 4X", 2, "no size"),
        ("-", 2, "name the output"),
    ],
)
def test_decode(fails, folder, listing, monkeypatch, args, code, says):
    monkeypatch.chdir(folder)
    fails("decode", *args.split(), code=code, says=says)


def test_unknown_command(fails):
    fails("frobnicate", code=2, says="No such command")


def test_no_command_shows_the_help(dcz):
    assert "encode" in dcz("--help").stdout


@pytest.mark.parametrize("command", ["info", "verify", "decode"])
def test_no_truncation_passes(dcz, fails, folder, listing, monkeypatch, command):
    monkeypatch.chdir(folder)
    data = (folder / "lenet.dcz").read_bytes()
    for length in (0, 1, 7, 8, 19, 20, 100, len(data) // 2, len(data) - 1):
        more = ("-o", "-") if command == "decode" else ()
        if command == "verify" and length > 1000:  # the directory is whole: every tensor that is cut is named
            result = dcz(command, "-", code=3, stdin=data[:length])
            assert result.stdout == ""
            assert "the file is cut off" in result.stderr.splitlines()[0]
        else:
            fails(command, "-", *more, code=3, stdin=data[:length])


def test_no_flipped_bit_passes(dcz, folder, listing):
    data = (folder / "lenet.dcz").read_bytes()
    rng = random.Random(3)
    places = [*range(24), *(rng.randrange(len(data)) for _ in range(40))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        # 3 damaged, 4 another version or feature, 5 a directory above the limit.
        codes = (3, 4, 5) if place < 24 else (3,)
        result = None
        for code in codes:
            try:
                result = dcz("verify", "-", code=code, stdin=bytes(damaged))
                break
            except AssertionError:
                continue
        assert result is not None, place
        assert result.stdout == ""
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["info", "verify"])
def test_random_bytes(fails, command):
    rng = random.Random(5)
    start = b"\x89DCZ\r\n\x1a\n\x01\0\0\0" + (900).to_bytes(4, "little")
    for length in (1, 20, 3000):
        fails(command, "-", code=3, says="not a .dcz file", stdin=rng.randbytes(length))
        fails(command, "-", code=3, stdin=start + rng.randbytes(length))


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.npz", "m.bin", "m"])
def test_models_of_random_bytes(fails, folder, name):
    rng = random.Random(6)
    for content in (b"", rng.randbytes(3000), b"PK\x03\x04" + rng.randbytes(500), b"\x80\x02}q\0."):
        (folder / name).write_bytes(content)
        fails("encode", folder / name, code=2, says=name)
        assert not (folder / "m.dcz").exists()


def test_truncated_models(fails, dcz, folder):
    rng = np.random.default_rng(0)
    save_file({"a": rng.normal(size=500)}, folder / "m.safetensors")
    torch.save({"a": torch.randn(500)}, folder / "m.pt")
    np.savez(folder / "m.npz", a=rng.normal(size=500))
    for suffix in ("safetensors", "pt", "npz"):
        path = folder / f"m.{suffix}"
        data = path.read_bytes()
        for length in (5, len(data) // 2, len(data) - 3):
            path.write_bytes(data[:length])
            fails("encode", path, code=2, says=path.name)


def test_tensors_that_no_file_can_hold(fails, folder):
    torch.save({"good": torch.ones(3), "odd": torch.eye(3).to_sparse()}, folder / "sparse.pt")
    fails("encode", folder / "sparse.pt", code=4, says="'odd' is sparse_coo")


def test_files_of_another_kind_are_said_to_be_so(fails, folder):
    (folder / "text.pt").write_text("hello, this is text\n")
    assert fails("encode", folder / "text.pt", code=2).endswith("damaged, or not a PyTorch file\n")
    (folder / "text.npz").write_text("hello, this is text\n")
    fails("encode", folder / "text.npz", code=2, says="is not an .npz file, or damaged$")
    torch.save({"a": torch.ones(500)}, folder / "cut.pt")
    (folder / "cut.pt").write_bytes((folder / "cut.pt").read_bytes()[:900])
    fails("encode", folder / "cut.pt", code=2, says="is cut short or damaged$")


@pytest.mark.parametrize("command", ["info", "verify", "decode"])
def test_what_is_no_frame_is_said_to_be_what_it_is(fails, folder, command):
    torch.save({"a": torch.ones(500)}, folder / "m.pt")
    (folder / "empty").touch()
    for name, says in (
        ("tiny.safetensors", "; it looks like a safetensors file; dcz encode makes a .dcz of it$"),
        ("m.pt", "; it looks like a zip file"),
        ("empty", "; it is empty$"),
    ):
        more = ("-o", folder / "out.npz") if command == "decode" else ()
        fails(command, folder / name, *more, code=3, says=f"{name}: this is not a .dcz file.*{says}")
        more = ("-o", "-") if command == "decode" else ()
        fails(command, "-", *more, code=3, says=says, stdin=(folder / name).read_bytes())


def test_unsafe_pickles_are_refused(fails, folder):
    torch.save({"model": print}, folder / "evil.pt")
    fails("encode", folder / "evil.pt", code=2)


def test_future_version(fails, folder):
    data = bytearray((folder / "lenet.dcz").read_bytes())
    data[8] = 9
    (folder / "new.dcz").write_bytes(data)
    for command in ("info", "verify", "decode"):
        fails(command, folder / "new.dcz", code=4, says="version 9")


def test_binary_never_goes_to_a_terminal(fails, folder, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    fails("encode", folder / "tiny.safetensors", "-o", "-", code=2, says="terminal")
    fails("decode", folder / "lenet.dcz", "-o", "-", code=2, says="terminal")
    fails("info", "-", code=2, says="terminal")


def test_memory_that_is_not_there(fails, folder, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("dcompress.encode.encode_checkpoint", refuse)
    fails("encode", folder / "tiny.safetensors", code=1, says="not enough memory: Unable to allocate 9 TiB")


def test_interrupt(dcz, folder, listing, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dcompress.encode.EncodedFrame.write", interrupt)
    result = dcz("encode", folder / "tiny.safetensors", "--preset", "lossless", code=130)
    assert result.stderr == "dcz: interrupted\n"


@not_root
def test_permissions(fails, folder):
    (folder / "lenet.dcz").chmod(0)
    fails("info", folder / "lenet.dcz", code=1, says="Permission denied; check")
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    fails("encode", folder / "tiny.safetensors", "-o", locked / "out.dcz", code=1, says="not writable")
