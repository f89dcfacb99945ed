"""What several commands of ``dcz`` share: options, sizes, streams, paths."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from dcompress.cli.session import Session

if TYPE_CHECKING:
    from dcompress.decode import FrameReader
    from dcompress.stages import Checkpoint

__all__ = [
    "check_target",
    "default_output",
    "force_option",
    "json_option",
    "limit_option",
    "open_model",
    "open_reader",
    "output_stream",
    "print_json",
    "print_lines",
    "quiet_option",
    "terminal_width",
    "threads_option",
    "verbose_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_HEAD_BYTES = 32  # that tell what a file is
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def _byte_size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Return the bytes of a size such as 500M, 4G or 1.5GiB: units are powers of 1,024."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", value.strip().upper())
    if match is None:
        raise click.BadParameter(f"{value!r} is no size; write it like 500M or 4G")
    unit = 1 << _UNITS[match[2]]
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def _threads(_: click.Context, __: click.Parameter, value: int | None) -> int:
    """Return the number of threads to use."""
    if value is not None and value < 0:
        raise click.BadParameter(f"{value} is less than 0")
    from dcompress.threads import usable_threads

    return usable_threads(value or None)


def _be_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(Session).quiet |= value


def _be_verbose(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(Session).verbose |= value


threads_option = click.option(
    "-T",
    "--threads",
    type=int,
    metavar="N",
    callback=_threads,
    help="Threads to use; 0, the default, uses all there are. The result is always the same.",
)
limit_option = click.option(
    "-M",
    "--max-output",
    "max_output",
    metavar="SIZE",
    callback=_byte_size,
    help="Refuse a file that decodes to more than this, such as 500M or 4G.  "
    "[default: 4G, or 4096 times the file if that is more]",
)
force_option = click.option("-f", "--force", is_flag=True, help="Replace the output file if it exists.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def quiet_option(command: Command) -> Command:
    """Add ``-q`` to a command."""
    text = "Print errors only: no table, notes or progress."
    return _flag("-q", "--quiet", _be_quiet, text)(command)


def verbose_option(text: str) -> Callable[[Command], Command]:
    """Return a decorator that adds ``-v`` to a command."""
    return _flag("-v", "--verbose", _be_verbose, text)


def _flag(flag: str, name: str, callback: Callable[..., None], text: str) -> Callable[[Command], Command]:
    return click.option(
        flag, name, is_flag=True, expose_value=False, is_eager=True, callback=callback, help=text
    )


def print_lines(lines: list[str]) -> None:
    """Print results."""
    click.echo("\n".join(lines))


def print_json(content: dict[str, Any]) -> None:
    """Print results for machines."""
    import json

    click.echo(json.dumps(content, indent=2, allow_nan=False))


def terminal_width() -> int | None:
    """Return the columns of the terminal that results go to; None if they go elsewhere."""
    import shutil

    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def default_output(path: str, suffix: str) -> str:
    """Return the input's path with another suffix.

    Examples
    --------
    >>> default_output("run.pth.tar", ".dcz")
    'run.dcz'
    """
    if not Path(path).name:
        return path + suffix
    stem = Path(path).with_suffix("")
    if Path(path).suffix.lower() == ".tar" and stem.suffix.lower() in (".pt", ".pth", ".th"):
        stem = stem.with_suffix("")
    return str(stem.with_name(stem.name + suffix))


def output_stream() -> BinaryIO:
    """Return stdout for binary data.

    Raises
    ------
    UsageError
        It is a terminal.
    """
    if sys.stdout is None or sys.stdout.isatty():
        raise click.UsageError("a terminal takes no binary data: redirect the output, or name a file with -o")
    return sys.stdout.buffer


def check_target(session: Session, source: str, target: str, force: bool) -> None:
    """Check, before any work, that a file can be written.

    Raises
    ------
    OSError
        It cannot be, see `dcompress.atomic.check_writable_target`.
    UsageError
        It is the input.
    """
    from dcompress.atomic import check_writable_target

    if source != "-" and os.path.exists(target) and os.path.samefile(source, target):  # noqa: PTH110, PTH121
        raise click.UsageError(f"{target}: is the input; name another output with -o")
    with session.writing_to(target):
        check_writable_target(target, force)


@contextmanager
def open_reader(
    session: Session, path: str, *, max_output: int | None = None, threads: int = 1, partial: bool = False
) -> Iterator[FrameReader]:
    """Return a context with an open frame, from a file, a pipe or, as ``-``, stdin; see `open_frame`."""
    from dcompress.decode import open_frame
    from dcompress.errors import CorruptError, NotDczError, TruncatedError
    from dcompress.limits import DecodeLimits

    limits = DecodeLimits(max_output_bytes=max_output)
    with session.working_on(path):
        source: str | bytes = path
        if path == "-":
            if sys.stdin is None or sys.stdin.isatty():
                raise click.UsageError("standard input is a terminal: pipe a .dcz file into it")
            source = _read_stream(sys.stdin.buffer)
        else:
            mode = Path(path).stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                with Path(path).open("rb") as stream:
                    source = _read_stream(stream)
        try:
            opened = open_frame(source, limits=limits, threads=threads, partial=partial)
        except NotDczError as error:
            error.hint = error.hint or _looks_like(source)
            raise
        except (CorruptError, TruncatedError) as error:
            if partial:
                error.hint = "without a sound directory nothing of it can be read: copy or download it again"
            raise
        with opened as reader:
            yield reader


def _looks_like(source: str | bytes) -> str:
    """Return what a file, or its first bytes, looks like, which is no frame; empty if that is unknown."""
    if isinstance(source, bytes):
        head = source[:_HEAD_BYTES]
    else:
        with Path(source).open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    if not head:
        return "it is empty"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "it looks like a safetensors file; dcz encode makes a .dcz of it"
    if head.startswith(b"PK\x03\x04"):
        return "it looks like a zip file, as .pt and .npz files are; dcz encode makes a .dcz of those"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "it looks like a PyTorch file; dcz encode makes a .dcz of it"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run 'git lfs pull'"
    return ""


def _read_stream(stream: BinaryIO) -> bytes:
    """Return what a stream holds, or only its start if that is no frame."""
    from dcompress.constants import SIGNATURE

    head = stream.read(_HEAD_BYTES)
    return head + stream.read() if head.startswith(SIGNATURE) else head


@contextmanager
def open_model(
    session: Session, path: str, *, max_output: int | None = None, threads: int = 1
) -> Iterator[Checkpoint]:
    """Return a context with the model in a file of any readable kind, ``.dcz`` among them."""
    from dcompress.constants import SIGNATURE
    from dcompress.lazy import read_lazily
    from dcompress.model_file import read_checkpoint

    is_frame = path == "-"
    with session.working_on(path):
        if not is_frame and stat.S_ISREG(Path(path).stat().st_mode):
            with Path(path).open("rb") as stream:
                is_frame = stream.read(len(SIGNATURE)) == SIGNATURE
        if is_frame:
            with open_reader(session, path, max_output=max_output, threads=threads) as reader:
                yield read_lazily(reader)
        else:
            checkpoint = read_checkpoint(path)
            for note in checkpoint.notes:
                session.note(note)
            yield checkpoint
