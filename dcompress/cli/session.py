"""What one run of ``dcz`` carries along: what it says on stderr, how errors become a line and a code."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from dcompress.cli.table import printable
from dcompress.errors import DcompressError, DcompressWarning, EncodeError, RecipeError

__all__ = ["INTERRUPTED", "IO_ERROR", "USAGE_ERROR", "Session"]

IO_ERROR = 1
USAGE_ERROR = 2
INTERRUPTED = 130

_PROGRESS_FROM = 1 << 24  # bytes; less is done before a bar is worth its import
_HINTS = {
    errno.EEXIST: "add -f to replace it, or name another with -o",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "check its permissions, or name another place",
    errno.EPERM: "check its permissions, or name another place",
    errno.EROFS: "name another place with -o",
    errno.ENOSPC: "free some space, or name another place with -o",
    errno.EDQUOT: "free some space, or name another place with -o",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or name another place with -o",
}


class Session:
    """One run of ``dcz``.

    Attributes
    ----------
    quiet, verbose : bool
        ``-q`` and ``-v``.
    io_exit_code : int
        What an I/O error ends with.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self.io_exit_code = IO_ERROR
        self._path = ""
        self._output = ""

    def note(self, text: str) -> None:
        """Say something on stderr, unless told to be quiet."""
        if not self.quiet:
            _to_stderr(f"dcz: note: {_one_line(text)}")

    def detail(self, text: str) -> None:
        """Say something on stderr, if told to be verbose."""
        if self.verbose:
            _to_stderr(f"dcz: {_one_line(text)}")

    def error(self, text: str) -> None:
        """Say what is wrong, in one line on stderr."""
        _to_stderr(f"dcz: {_one_line(text)}")

    @contextmanager
    def working_on(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Return a context in which errors that do not name their file are about this one."""
        before, self._path = self._path, "standard input" if path == "-" else os.fspath(path)
        yield
        self._path = before  # not after an error: it is described outside

    @contextmanager
    def writing_to(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Return a context in which I/O errors that do not name their file are about this output."""
        self._output = "standard output" if path == "-" else os.fspath(path)
        yield
        self._output = ""

    @contextmanager
    def progress(self, label: str, n_bytes: int) -> Iterator[Callable[[int], None] | None]:
        """Return a context with a progress bar on stderr, where there is someone to see it.

        What it gives is called with the bytes of each step, or is None.
        """
        if self.quiet or n_bytes < _PROGRESS_FROM or not sys.stderr.isatty():
            yield None
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
        except ImportError:
            yield None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=n_bytes)
            yield lambda done: bar.advance(task, done)

    def run(self, command: Callable[[], Any]) -> int:
        """Run a command; return its exit code. Whatever bad input raises becomes one line on stderr."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", DcompressWarning)
                warnings.showwarning = self._show_warning
                code = command()
            if sys.stdout is not None:
                sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except BrokenPipeError:  # the reader has seen enough
            _abandon_stdout()
            return IO_ERROR
        except OSError as error:
            self.error(self._describe_os_error(error))
            _abandon_stdout()
            return self.io_exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else "dcz"
            self.error(f"{error.format_message().rstrip('.')}; see {path} --help")
        except click.ClickException as error:
            self.error(error.format_message())
        except DcompressError as error:
            self.error(self.locate(error))
            return error.exit_code
        except MemoryError as error:
            self.error(f"not enough memory{f': {error}' if str(error) else ''}")
            return self.io_exit_code
        except (KeyboardInterrupt, click.Abort):
            self.error("interrupted")
            return INTERRUPTED
        return USAGE_ERROR

    def locate(self, error: DcompressError) -> str:
        """Return the text of an error, with its file in front if it is about one and does not name it."""
        text = str(error)
        # What cannot be written to an output is not the fault of the input.
        path = self._output if self._output and isinstance(error, EncodeError) else self._path
        if not path or isinstance(error, RecipeError) or text.startswith(f"{path}: "):
            return text
        return f"{path}: {text}"

    def _describe_os_error(self, error: OSError) -> str:
        """Return what happened where, and what to do."""
        path = error.filename if isinstance(error.filename, str) else ""
        if not path or os.path.basename(path).startswith(".dcompress-"):  # noqa: PTH119 (a name, no path)
            path = self._output or self._path or "standard output"
        text = f"{path}: {error.strerror or str(error) or type(error).__name__}"
        hint = _HINTS.get(error.errno or 0)
        return f"{text}; {hint}" if hint else text

    def _show_warning(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """Show a warning of ours as a note; those of libraries only to those who want details."""
        if issubclass(category, DcompressWarning):
            self.note(str(message))
        else:
            self.detail(f"warning: {message}")


def _one_line(text: str) -> str:
    """Return text as one printable line."""
    return printable(" ".join(part.strip() for part in text.splitlines() if part.strip()))


def _to_stderr(text: str) -> None:
    """Print to stderr, if there is one."""
    if sys.stderr is not None:
        with suppress(OSError):
            click.echo(text, err=True)


def _abandon_stdout() -> None:
    """Keep the interpreter from trying, and failing, to flush what stdout did not take."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
