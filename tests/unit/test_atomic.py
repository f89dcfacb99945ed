"""Output files appear whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dcompress.atomic import atomic_writer, check_writable_target

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX only")
not_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def write(path, content, overwrite=True):
    with atomic_writer(path, overwrite=overwrite) as stream:
        stream.write(content)


def run_python(code, *args, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], **options)


def test_new_file_has_the_content_and_nothing_else_is_left(tmp_path):
    write(tmp_path / "out", b"new", overwrite=False)
    assert (tmp_path / "out").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_target_is_untouched_until_the_end(tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with atomic_writer(target, overwrite=True) as stream:
        stream.write(b"new" * 100_000)
        stream.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" * 100_000


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("out", b"new", overwrite=False)
    assert (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("exists", [False, True])
def test_failure_leaves_everything_as_it_was(tmp_path, error, exists):
    target = tmp_path / "out"
    if exists:
        target.write_bytes(b"old")

    def fail():
        with atomic_writer(target, overwrite=True) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"old"] if exists else [])


def test_existing_file_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    with (
        pytest.raises(FileExistsError, match="exists already"),
        atomic_writer(tmp_path / "out", overwrite=False),
    ):
        pytest.fail("the body must not run")
    assert (tmp_path / "out").read_bytes() == b"old"


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    def race():
        with atomic_writer(tmp_path / "out", overwrite=False) as stream:
            stream.write(b"mine")
            (tmp_path / "out").write_bytes(b"other")

    with pytest.raises(FileExistsError):
        race()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"other"]


@posix
@pytest.mark.parametrize("appears", [False, True])
def test_file_system_without_hard_links(tmp_path, monkeypatch, appears):
    def no_links(*_):
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", no_links)
    target = tmp_path / "out"
    if appears:
        with pytest.raises(FileExistsError), atomic_writer(target, overwrite=False):
            target.write_bytes(b"other")
    else:
        write(target, b"new", overwrite=False)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"other" if appears else b"new"]


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_file_honours_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "a", b"", overwrite=False)
        write(tmp_path / "b", b"", overwrite=True)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == mode_of(tmp_path / "b") == 0o666 & ~umask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o777])
def test_replaced_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(mode)
    write(tmp_path / "out", b"new")
    assert mode_of(tmp_path / "out") == mode


@posix
def test_symbolic_link_is_kept_and_its_target_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "file"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to(target)
    write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    with pytest.raises(FileExistsError):
        write(tmp_path / "link", b"again", overwrite=False)


@posix
def test_dangling_link_gets_its_target(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", b"new", overwrite=False)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


@posix
def test_hard_link_of_the_old_file_keeps_the_old_content(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    os.link(tmp_path / "out", tmp_path / "twin")
    write(tmp_path / "out", b"new")
    assert (tmp_path / "twin").read_bytes() == b"old"


@posix
def test_targets_that_cannot_work_fail_early(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path, error in [
        (tmp_path, IsADirectoryError),
        (tmp_path / "fifo", OSError),
        (Path("/dev/null"), OSError),
        (tmp_path / "no" / "out", FileNotFoundError),
        (tmp_path / "file" / "out", NotADirectoryError),
        (tmp_path / "loop", OSError),
        (tmp_path / ("x" * 300), OSError),
    ]:
        with pytest.raises(error) as caught:
            check_writable_target(path, overwrite=True)
        assert caught.value.filename
        assert caught.value.strerror
    assert check_writable_target(tmp_path / "file", overwrite=True) == (tmp_path / "file").resolve()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "file", "loop"]


@not_root
def test_read_only_folder_and_file_fail_early(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        check_writable_target(tmp_path / "file", overwrite=True)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="not writable"):
            check_writable_target(tmp_path / "out", overwrite=True)
    finally:
        tmp_path.chmod(0o755)


@posix
def test_file_and_folder_are_synced_in_order(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def watched_replace(path, target):
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write(tmp_path / "out", b"new")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failure_at_the_end_leaves_everything_as_it_was(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(errno.EIO, "broken")

    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="broken"):
        write(tmp_path / "out", b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@posix
def test_full_disk_leaves_everything_as_it_was(tmp_path):
    code = """
import resource, signal, sys
from dcompress.atomic import atomic_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_writer(sys.argv[1], overwrite=True) as stream:
        stream.write(b"x" * int(sys.argv[2]))
except OSError as error:
    print(type(error).__name__, error.errno)
"""
    (tmp_path / "out").write_bytes(b"old")
    for size in (1_000_000, 100_001):  # fails in write, fails in flush
        process = run_python(code, tmp_path / "out", size, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=60)
        assert (out.split(), err) == ([b"OSError", str(errno.EFBIG).encode()], b"")
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@posix
def test_kill_in_mid_write_keeps_the_old_file_and_a_rerun_works(tmp_path):
    code = """
import sys, time
from dcompress.atomic import atomic_writer
with atomic_writer(sys.argv[1], overwrite=True) as stream:
    stream.write(b"half" * 100_000)
    stream.flush()
    print("ready", flush=True)
    time.sleep(60)
"""
    (tmp_path / "out").write_bytes(b"old")
    with run_python(code, tmp_path / "out", stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "out").read_bytes() == b"old"
    (stale,) = [p for p in tmp_path.iterdir() if p.name != "out"]
    assert stale.name.startswith(".dcompress-")
    assert stale.suffix == ".tmp"
    write(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


@posix
def test_interrupt_removes_the_temporary_file(tmp_path):
    code = """
import signal, sys, time
from dcompress.atomic import atomic_writer
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
with atomic_writer(sys.argv[1], overwrite=True) as stream:
    stream.write(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""
    with run_python(code, tmp_path / "out", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_twenty_concurrent_writers_leave_one_complete_file(tmp_path, overwrite):
    code = """
import sys
from dcompress.atomic import atomic_writer
sys.stdin.readline()  # all start together
try:
    with atomic_writer(sys.argv[1], overwrite=sys.argv[3] == "True") as stream:
        for _ in range(200):
            stream.write(sys.argv[2].encode() * 1000)
    print("won")
except FileExistsError:
    print("lost")
"""
    letters = "abcdefghijklmnopqrst"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [run_python(code, tmp_path / "out", letter, overwrite, **pipes) for letter in letters]
    outcomes = []
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        outcomes.append(process.communicate(timeout=120)[0].split())
        assert process.returncode == 0
    content = (tmp_path / "out").read_text()
    assert content == content[0] * 200_000
    assert outcomes.count([b"won"]) == (20 if overwrite else 1)
    if not overwrite:
        assert outcomes[letters.index(content[0])] == [b"won"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
