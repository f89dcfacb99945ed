"""Output files that appear whole or not at all.

A crash, a full disk or Ctrl-C leaves the old file as it was. After ``kill -9`` or a power cut a stray
``.dcompress-*.tmp`` may stay beside it, which is harmless.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_writer", "check_writable_target"]


def check_writable_target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return the file that writing to ``path`` would create or replace, symbolic links resolved.

    Call it before long work: it fails where the writing would fail later.

    Parameters
    ----------
    path : path-like
        Output file.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    target : Path
        Absolute path without symbolic links.

    Raises
    ------
    OSError
        The subclass that fits: the target is a directory, a FIFO or a device, exists and may not be
        overwritten, is read-only, or its folder is missing or not writable.
    """
    target = Path(os.path.realpath(path))
    folder = target.parent
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    except NotADirectoryError:  # a file stands where a folder is needed
        raise NotADirectoryError(errno.ENOTDIR, "output folder is not a folder", str(folder)) from None
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "output is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "output is not a regular file", str(path))
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "output file exists already", str(path))
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "output file is read-only", str(path))
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, "output folder does not exist", str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "output folder is not a folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "output folder is not writable", str(folder))
    return target


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[BinaryIO]:
    """Return a context that gives a binary file; on leaving, the file stands at ``path``, complete.

    Everything goes to a new file in the same folder, which is synced to disk and renamed at the end. If
    the body raises, it is removed. A new file gets the mode that the umask allows, a replaced file keeps
    its own. A symbolic link is kept, and its target replaced. Of several writers, the last one to finish
    wins with ``overwrite``, and the first without.

    Parameters
    ----------
    path : path-like
        Output file.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OSError
        As `check_writable_target` says, or the writing failed.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = pathlib.Path(folder, "out.bin")
    ...     with atomic_writer(target, overwrite=False) as stream:
    ...         _ = stream.write(b"all of it")
    ...     target.read_bytes()
    b'all of it'
    """
    target = check_writable_target(path, overwrite)
    temporary = target.with_name(f".dcompress-{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:  # from here on: Ctrl-C may come before the next line is done
        descriptor = os.open(temporary, flags, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            if hasattr(os, "fchmod"):
                with contextlib.suppress(FileNotFoundError):
                    os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            yield stream
            stream.flush()
            os.fsync(descriptor)
        if overwrite:
            temporary.replace(target)
        else:
            _publish_new(temporary, target)
    except BaseException:  # Ctrl-C too
        _remove(temporary)
        raise
    _sync_folder(target.parent)


def _publish_new(temporary: Path, target: Path) -> None:
    """Give the finished file its name, unless another writer has taken the name meanwhile."""
    exists = FileExistsError(errno.EEXIST, "output file exists already", str(target))
    if os.name == "nt":
        try:
            temporary.rename(target)  # on Windows, renaming never replaces
        except FileExistsError:
            raise exists from None
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise exists from None
    except OSError:  # a file system without hard links: look, then rename
        if os.path.lexists(target):
            raise exists from None
        temporary.replace(target)
    else:
        _remove(temporary)


def _remove(temporary: Path) -> None:
    """Remove the temporary file if it is still there."""
    with contextlib.suppress(OSError):
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can."""
    if os.name == "nt":
        return
    # The file itself is complete and synced: a file system that cannot sync folders is no failure.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
