"""What only a process of its own shows: signals, pipes, full disks, the installed command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

DCZ = (sys.executable, "-m", "dcompress")

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


def run(*args, code=0, preexec_fn=None, stdout=subprocess.PIPE, env=None):
    done = subprocess.run(
        [*DCZ, *map(str, args)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        preexec_fn=preexec_fn,
        env={**os.environ, **(env or {})},
        check=False,
        timeout=120,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.returncode == code, done.stderr.decode()
    return done


def test_round_trip(folder):
    run("encode", folder / "tiny.safetensors", "--preset", "lossless")
    done = run("verify", folder / "tiny.dcz")
    assert done.stdout.startswith(b"ok: 4 tensors")
    run("decode", folder / "tiny.dcz", "-o", folder / "out.safetensors")
    run("compare", folder / "out.safetensors", folder / "tiny.safetensors")
    run("compare", folder / "lenet.dcz", folder / "lenet.safetensors", code=1)


def test_errors_are_one_line(folder):
    for args, code in (
        (("info", folder / "gone.dcz"), 1),
        (("decode", folder / "lenet.dcz"), 1),
        (("encode",), 2),
        (("verify", folder / "tiny.safetensors"), 3),
        (("verify", "-M", "1", folder / "lenet.dcz"), 5),
    ):
        done = run(*args, code=code)
        assert done.stdout == b""
        assert done.stderr.startswith(b"dcz: ")
        assert done.stderr.count(b"\n") == 1


@posix
def test_full_disk(folder, listing):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    for args in (
        ("encode", folder / "lenet.safetensors", "-o", folder / "out.dcz", "--preset", "lossless"),
        ("decode", folder / "lenet.dcz", "-o", folder / "out.safetensors"),
        ("decode", folder / "lenet.dcz", "-o", folder / "out.npz"),
        ("decode", folder / "lenet.dcz", "-o", folder / "lenet.safetensors", "-f"),
    ):
        done = run(*args, code=1, preexec_fn=limit)
        assert b"out." in done.stderr or b"lenet.safetensors: " in done.stderr
        assert b"File too large" in done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_stdout(folder):
    with Path("/dev/full").open("wb") as full:
        for args in (("info", folder / "lenet.dcz"), ("decode", folder / "lenet.dcz", "-o", "-")):
            done = run(*args, code=1, stdout=full)
            assert done.stderr.startswith(b"dcz: standard output: No space left on device")
            assert done.stderr.count(b"\n") == 1


@posix
def test_closed_pipe(folder):
    reader, writer = os.pipe()
    os.close(reader)
    for args in (("info", folder / "lenet.dcz"), ("decode", folder / "lenet.dcz", "-o", "-")):
        assert run(*args, code=1, stdout=writer).stderr == b""
    os.close(writer)


@posix
def test_named_pipe_is_read_like_stdin(folder):
    os.mkfifo(folder / "pipe")
    with subprocess.Popen([*DCZ, "verify", str(folder / "pipe")], stdout=subprocess.PIPE) as process:
        (folder / "pipe").write_bytes((folder / "lenet.dcz").read_bytes())
        assert process.communicate(timeout=60)[0].startswith(b"ok: ")


@posix
@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)], ids=["INT", "TERM", "HUP"])
def test_signals_leave_nothing_behind(folder, number, code):
    os.mkfifo(folder / "never")
    before = sorted(folder.iterdir())
    script = (
        "import signal, sys, time, dcompress.encode as e\n"
        # By nohup, or behind a shell's &, some of these are ignored, and children inherit that.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def write(self, stream):\n"
        "    stream.write(b'part'); stream.flush(); print('writing', flush=True); time.sleep(60)\n"
        "e.EncodedFrame.write = write\n"
        "from dcompress.cli import main\n"
        "main()\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "encode",
        str(folder / "tiny.safetensors"),
        "--preset",
        "lossless",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        assert len(list(folder.iterdir())) == len(before) + 1
        time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert b"Traceback" not in stderr
    assert sorted(folder.iterdir()) == before


@posix
def test_names_that_the_terminal_cannot_show(folder):
    save_file({"größe 重\u202e": np.ones(4)}, folder / "naïve.safetensors")
    plain = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0", "NO_COLOR": "1"}
    done = run("encode", folder / "naïve.safetensors", env=plain)
    assert "größe".encode("latin-1") + rb" \u91cd\u202e" in done.stdout
    odd = os.fsencode(folder) + b"/\xff.dcz"
    (folder / "lenet.dcz").rename(os.fsdecode(odd))
    done = subprocess.run([*DCZ, "verify", odd], capture_output=True, check=True)
    assert done.stdout.startswith(b"ok: ")
    done = subprocess.run([*DCZ, "decode", odd, "-o", b"\xfe/x.pt"], capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
