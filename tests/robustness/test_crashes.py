"""Crashes, full disks, failing system calls and many writers: the old file or the new one, never a piece."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dcompress.numpy
from dcompress.atomic import atomic_writer
from dcompress.decode import open_frame
from dcompress.errors import ChecksumError, TruncatedError

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
pytestmark = posix

# Writes one version after the other, each a frame of its own, and is ended by a signal again and again.
SAVER = """
import os, signal, sys, time
import numpy as np
import dcompress.numpy
from dcompress.atomic import atomic_writer

def version(n):
    noise = np.arange(90000, dtype=np.uint32) * (n + 1)
    return dcompress.numpy.save({"w": np.full((300, 400), n, np.int32), "n": noise}, recipe="lossless")

def save_forever(target, frames):
    n = 0
    while True:
        frame = frames[n % 3]
        with atomic_writer(target, overwrite=True) as stream:
            for at in range(0, len(frame), 5000):
                stream.write(frame[at : at + 5000])
        n += 1

signal.signal(signal.SIGINT, signal.default_int_handler)  # even if it was ignored where this was started
target, number, frames = sys.argv[1], int(sys.argv[2]), [version(n) for n in range(3)]
for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        if number == signal.SIGTERM:
            signal.signal(number, lambda *_: sys.exit(143))
        try:
            os.write(writer, b"!")  # before this a signal may be lost, in what Python does after a fork
            save_forever(target, frames)
        except BaseException:
            pass
        os._exit(1)
    os.read(reader, 1)
    os.close(reader), os.close(writer)
    time.sleep(float(line))
    os.kill(child, number)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def start(code, *args, **options):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, **options)


def end_at_random_moments(target, number, seed):
    """End a process that writes a file again and again; yield after each end. Slow machines get more time."""
    rng = np.random.default_rng(seed)
    with start(SAVER, target, int(number), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for count in range(200):
            delay = rng.uniform(0.002, 0.04) * 2 ** (count // 40)
            process.stdin.write(b"%f\n" % delay)
            process.stdin.flush()
            assert process.stdout.readline() == b"ended\n"
            yield count
        process.communicate(timeout=30)


def test_kill_at_random_moments_leaves_a_whole_file(tmp_path):
    target = tmp_path / "m.dcz"
    dcompress.numpy.save_file({"w": np.zeros(3, np.int32)}, target)
    seen, others = set(), []
    for count in end_at_random_moments(target, signal.SIGKILL, 6):
        arrays = dcompress.numpy.load_file(target)  # whole, every checksum right
        seen.add((arrays["w"].size, int(arrays["w"].flat[0])))
        others = [path for path in tmp_path.iterdir() if path != target]
        assert all(re.fullmatch(r"\.dcompress-[0-9a-f]{16}\.tmp", path.name) for path in others)
        if count >= 30 and len(seen) > 1 and others:
            break
    assert len(seen) > 1
    assert others, "no kill came in mid-write: the test shows nothing"
    dcompress.numpy.save_file({"w": np.ones(3, np.int32)}, target)  # stale files are in nobody's way
    assert dcompress.numpy.load_file(target)["w"].tolist() == [1, 1, 1]


def test_a_hundred_writers_leave_one_whole_file(tmp_path):
    code = """
import os, sys
from dcompress.atomic import atomic_writer
target, overwrite = sys.argv[1], sys.argv[2] == "True"
reader, writer = os.pipe()
children = []
for number in range(100):
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)  # all start together
        try:
            with atomic_writer(target, overwrite=overwrite) as stream:
                for _ in range(50):
                    stream.write(number.to_bytes(2, "little") * 500)
        except FileExistsError:
            os._exit(7)
        except BaseException:
            os._exit(9)
        os._exit(0)
    children.append(child)
os.close(writer)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(*codes)
"""
    for overwrite in (True, False):
        target = tmp_path / f"{overwrite}"
        with start(code, target, overwrite, stdout=subprocess.PIPE) as process:
            codes = list(map(int, process.communicate(timeout=120)[0].split()))
        content = target.read_bytes()
        assert content == content[:2] * 25_000
        assert len(codes) == 100
        if overwrite:
            assert codes == [0] * 100
        else:
            assert sorted(codes) == [0] + [7] * 99
            assert codes[int.from_bytes(content[:2], "little")] == 0
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# Every system call that writing makes fails once, for real: strace puts the errors in.
WRITER = """
import sys
import dcompress.atomic as atomic
atomic.secrets.token_hex = lambda n: "0" * 2 * n
try:
    with atomic.atomic_writer(sys.argv[1], overwrite=sys.argv[2] == "True") as stream:
        for _ in range(3):
            stream.write(b"new" * 30_000)
except OSError as error:
    print(error.errno)
    sys.exit(1)
"""
NEW = b"new" * 90_000
CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\(")


def traced(folder, overwrite, inject=None):
    """Run the writer under strace; return its exit code, its output, and the calls that it made."""
    log = folder.parent / "trace.log"
    temporary = folder / f".dcompress-{'0' * 16}.tmp"
    paths = [option for path in (temporary, folder / "out", folder) for option in ("-P", str(path))]
    command = ["strace", "-f", "-o", str(log), *paths]
    command += ["-e", f"inject={inject}"] if inject else []
    command += [sys.executable, "-c", WRITER, str(folder / "out"), str(overwrite)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    calls = [match[1] for line in log.read_text().splitlines() if (match := CALL.match(line))]
    return done, calls


def can_trace():
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(
        ["strace", "-e", "inject=close:error=EIO:when=9999", "true"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.mark.skipif(not can_trace(), reason="needs strace, and the right to use it")
@pytest.mark.parametrize("overwrite", [True, False])
def test_every_system_call_fails_once(tmp_path, overwrite):
    def fresh():
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if overwrite:
            (folder / "out").write_bytes(b"old")
        return folder

    done, calls = traced(fresh(), overwrite)
    assert done.returncode == 0, done.stderr
    assert {"openat", "write", "fsync", "close"} <= set(calls), calls
    tried = 0
    for name in sorted(set(calls)):
        for number in range(1, calls.count(name) + 1):
            for error in ("ENOSPC", "EIO") if name in ("write", "fsync") else ("EIO",):
                folder = fresh()
                done, _ = traced(folder, overwrite, f"{name}:error={error}:when={number}")
                where = f"{name} number {number}: {error}, {done.stderr.decode()}"
                assert done.returncode in (0, 1), where
                assert b"Traceback" not in done.stderr, where
                content = (folder / "out").read_bytes() if (folder / "out").exists() else None
                if done.returncode == 0:  # nothing that matters has failed
                    assert content == NEW, where
                else:
                    # The new file may stand there whole: what failed is to make its name last.
                    assert content in ((b"old" if overwrite else None), NEW), where
                others = {path.name for path in folder.iterdir()} - {"out"}
                assert not others or name.startswith("unlink") or content == NEW, (where, others)
                with atomic_writer(folder / "out", overwrite=True) as stream:  # and the way is free
                    stream.write(b"again")
                assert (folder / "out").read_bytes() == b"again"
                tried += 1
    assert tried > 10


# The same without strace: each function of the system that writing calls, failing at each of its calls.
FUNCTIONS = ("open", "fdopen", "fchmod", "fsync", "link", "close", "unlink", "replace", "stat")


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_fails_once(tmp_path, monkeypatch, name, overwrite):
    real = getattr(os, name)
    failed = 0
    for number in range(12):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        if overwrite:
            (folder / "out").write_bytes(b"old")
        calls = 0

        def failing(*args, _folder=folder, _number=number, **options):
            nonlocal calls, failed
            mine = name in ("fdopen", "fchmod", "fsync", "close") or str(_folder) in str(args[0])
            calls += mine
            if mine and calls == _number + 1:
                failed += 1
                if name == "close":
                    real(*args)
                raise OSError(errno.EIO, "broken", str(args[0]))
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            try:
                with atomic_writer(folder / "out", overwrite=overwrite) as stream:
                    stream.write(b"new")
                done = True
            except OSError as caught:
                error = caught.errno
                done = False
        content = (folder / "out").read_bytes() if (folder / "out").exists() else None
        assert done or error == errno.EIO
        assert content == b"new" if done else content in ((b"old" if overwrite else None), b"new")
        if calls <= number:
            break
    if name in ("open", "fsync", "fdopen"):
        assert failed > 0


def test_a_disk_that_is_full(tmp_path):
    """A real file system without space. Needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        dcompress.numpy.save_file({"w": np.arange(9)}, disk / "m.dcz")
        old = (disk / "m.dcz").read_bytes()
        noise = np.random.default_rng(1).integers(0, 1 << 16, 200_000).astype(np.uint16)
        np.savez(tmp_path / "noise.npz", noise=noise)
        with pytest.raises(OSError, match="No space left") as caught:
            dcompress.numpy.save_file({"w": noise}, disk / "m.dcz", recipe="lossless")
        assert caught.value.errno == errno.ENOSPC
        for args in (
            ("encode", tmp_path / "noise.npz", "-o", disk / "m.dcz", "-f"),
            ("encode", tmp_path / "noise.npz", "-o", disk / "new.dcz"),
        ):
            command = [sys.executable, "-m", "dcompress", *map(str, args)]
            done = subprocess.run(command, capture_output=True, check=False)
            assert (done.returncode, done.stdout) == (1, b"")
            assert b"No space left on device; free some space" in done.stderr
        assert [path.name for path in disk.iterdir()] == ["m.dcz"]
        assert (disk / "m.dcz").read_bytes() == old
        (disk / "filler").write_bytes(bytes(150_000))
        dcompress.numpy.save_file({"w": noise[:30_000]}, disk / "m.dcz", recipe="lossless")  # it still fits
        assert dcompress.numpy.load_file(disk / "m.dcz")["w"].size == 30_000
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def test_limits_on_file_sizes_at_every_step(tmp_path):
    code = """
import resource, signal, sys
import numpy as np
import dcompress.numpy
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
arrays = {"w": np.arange(6000, dtype=np.uint16), "v": np.random.default_rng(0).normal(size=3000)}
size = len(dcompress.numpy.save(arrays, recipe="lossless"))
for limit in [0, 1, 19, 20, 100, *range(200, size, size // 9), size - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        dcompress.numpy.save_file(arrays, sys.argv[1], recipe="lossless")
        break
    except OSError as error:
        assert error.errno == 27, error
    assert open(sys.argv[1], "rb").read() == b"old", limit
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    dcompress.numpy.save_file(arrays, sys.argv[1], recipe="lossless")
    print("ok", size)
"""
    (tmp_path / "out").write_bytes(b"old")
    with start(code, tmp_path / "out", stdout=subprocess.PIPE) as process:
        word, size = process.communicate(timeout=60)[0].split()
    assert word == b"ok"
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [int(size)]


# Files that change, or fail, while they are read.


@pytest.fixture
def frame_file(tmp_path):
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(size=(50, 40)).astype(np.float32) for name in "abc"}
    dcompress.numpy.save_file(arrays, tmp_path / "m.dcz", recipe="lossless")
    return tmp_path / "m.dcz", arrays


def test_a_file_that_is_replaced_while_it_is_read(frame_file):
    path, arrays = frame_file
    with dcompress.numpy.safe_open(path) as file:
        dcompress.numpy.save_file({"a": np.zeros(3)}, path)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    assert dcompress.numpy.load_file(path)["a"].size == 3


def test_a_file_is_written_over_itself_while_it_is_read(frame_file):
    path, arrays = frame_file
    with dcompress.numpy.safe_open(path) as file:
        dcompress.numpy.save_file({name: file.get_tensor(name) for name in file}, path, recipe="lossless")
        np.testing.assert_array_equal(file.get_tensor("b"), arrays["b"])
    np.testing.assert_array_equal(dcompress.numpy.load_file(path)["c"], arrays["c"])


def test_a_file_that_is_changed_in_place_while_it_is_read(frame_file):
    path, arrays = frame_file
    with open_frame(path) as reader:
        place = reader.directory.tensors["b"].chunks[0].offset + 70
    with dcompress.numpy.safe_open(path) as file, path.open("r+b") as writer:
        writer.seek(place)
        byte = writer.read(1)[0]
        writer.seek(place)
        writer.write(bytes([byte ^ 1]))
        writer.flush()
        np.testing.assert_array_equal(file.get_tensor("a"), arrays["a"])
        with pytest.raises(ChecksumError):
            file.get_tensor("b")
        writer.truncate(place)
        with pytest.raises(TruncatedError):
            file.get_tensor("b")
        writer.seek(place)
        writer.write(bytes(1 << 16))  # and longer than it was
        writer.flush()
        with pytest.raises(ChecksumError):
            file.get_tensor("c")


def test_a_disk_that_fails_to_read(frame_file, monkeypatch):
    path, arrays = frame_file
    real, calls = os.preadv, 0
    for number in range(1, 9):
        calls = 0

        def failing(descriptor, buffers, offset, _number=number):
            nonlocal calls
            calls += 1
            if calls == _number:
                raise OSError(errno.EIO, "Input/output error")
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", failing)
        try:
            loaded = dcompress.numpy.load_file(path)
        except OSError as caught:
            error = caught.errno
        else:
            error = None
            np.testing.assert_array_equal(loaded["c"], arrays["c"])
        assert error == (errno.EIO if calls == number else None)
    assert calls >= 4


def test_reads_that_come_in_pieces(frame_file, monkeypatch):
    path, arrays = frame_file
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda f, buffers, at: real(f, [buffers[0][:7]], at))
    for name, array in dcompress.numpy.load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_random_moments_leaves_nothing_behind(tmp_path, number):
    """Ctrl-C and the like: no file stays behind, whatever was going on."""
    target = tmp_path / "m.dcz"
    for count in end_at_random_moments(target, number, 7):
        assert [path.name for path in tmp_path.iterdir()] in ([], ["m.dcz"])
        if count >= 30 and target.exists():
            break
    assert dcompress.numpy.load_file(target)["w"].size == 120_000


def test_paths_of_all_kinds(tmp_path):
    for path in (
        tmp_path / "naïve 重.dcz",
        tmp_path / (200 * "n"),
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")),
    ):
        dcompress.numpy.save_file({"w": np.arange(3)}, path)
        assert dcompress.numpy.load_file(path)["w"].tolist() == [0, 1, 2]
    with pytest.raises(OSError, match="too long"):
        dcompress.numpy.save_file({"w": np.arange(3)}, tmp_path / (300 * "n"))
