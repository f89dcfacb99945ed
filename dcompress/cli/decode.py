"""``dcz decode`` and ``dcz verify``: what needs the payload of a ``.dcz`` file."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import click

from dcompress.cli.options import (
    check_target,
    default_output,
    force_option,
    json_option,
    limit_option,
    open_reader,
    output_stream,
    print_json,
    print_lines,
    quiet_option,
    threads_option,
    verbose_option,
)
from dcompress.cli.session import Session

if TYPE_CHECKING:
    from dcompress.decode import FrameReader
    from dcompress.errors import DecodeError

__all__ = ["decode", "verify"]

_DECODE_HELP = """Decode FILE (.dcz) to a model file.

The suffix of the output says what it becomes: .safetensors, .pt or .npz. Every tensor is checked against
its checksums. A damaged file leaves no output, unless --salvage saves what is sound. Prints one line if
all is well. FILE may be - for stdin.
"""
_DECODE_EPILOG = """\b
Examples:
  dcz decode model.dcz
  dcz decode model.dcz -o model.pt
  dcz decode model.dcz --tensor 'encoder.*' -o encoder.npz
  dcz decode damaged.dcz --salvage -o rest.safetensors
  curl -s https://example.org/model.dcz | dcz decode - -o model.safetensors
"""
_VERIFY_HELP = """Decode FILE (.dcz) without writing anything, and check every checksum and digest.

Prints one line if all is well. Otherwise every damaged tensor is listed on stderr, and the exit code is 3.
FILE may be - for stdin.
"""
_VERIFY_EPILOG = """\b
Examples:
  dcz verify model.dcz
  for f in *.dcz; do dcz verify "$f" || mv "$f" damaged/; done
"""


@click.command(short_help="Decode a .dcz file to a model file.", help=_DECODE_HELP, epilog=_DECODE_EPILOG)
@click.argument("file")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="Output file, - for stdout.  [default: FILE with its suffix replaced by .safetensors, beside it]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["safetensors", "pt", "npz"]),
    help="What to write.  [default: what the suffix says; safetensors to stdout]",
)
@click.option(
    "--tensor",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Decode only tensors that match, such as 'fc*'.",
)
@click.option(
    "--salvage",
    is_flag=True,
    help="Of a damaged file, write the tensors that are sound, list the others on stderr, and end with 3.",
)
@threads_option
@limit_option
@force_option
@quiet_option
@verbose_option("Say how long it took.")
@click.pass_obj
def decode(
    session: Session,
    file: str,
    output: str | None,
    kind: str | None,
    patterns: tuple[str, ...],
    salvage: bool,
    threads: int,
    max_output: int | None,
    force: bool,
) -> int:
    """Decode a frame to a model file; return the exit code."""
    from dcompress.cli.table import printable
    from dcompress.errors import DecodeError
    from dcompress.lazy import read_lazily
    from dcompress.model_file import kind_of_suffix, write_model
    from dcompress.rescue import salvage_checkpoint

    if output is None and file == "-":
        raise click.UsageError("name the output with -o when the input is stdin")
    target = output or default_output(file, f".{kind or 'safetensors'}")
    to_stdout = target == "-"
    kind = kind or ("safetensors" if to_stdout else kind_of_suffix(target))
    stream = output_stream() if to_stdout else None
    start = time.perf_counter()
    damages: list[DecodeError] = []
    with open_reader(session, file, max_output=max_output, threads=threads, partial=salvage) as reader:
        if not to_stdout:
            check_target(session, file, target, force)
        names = _select(reader, patterns)
        wanted = names if patterns else None
        n_bytes = sum(reader.directory.tensors[name].decoded_bytes for name in names)
        # Salvaging decodes twice: model files say at their start which tensors they hold.
        with session.progress("decoding", 2 * n_bytes if salvage else n_bytes) as progress:
            if salvage:
                checkpoint, damages = salvage_checkpoint(reader, wanted, keep=False, progress=progress)
                n_lost = len(names) - len(checkpoint.tensors)
                _report(session, file, damages, n_lost, len(names))
                if n_lost and not checkpoint.tensors:
                    return DecodeError.exit_code
                names = list(checkpoint.tensors)
            else:
                checkpoint = read_lazily(reader, wanted, progress=progress)
            with session.writing_to(target):
                notes = write_model(stream or target, checkpoint, kind=kind, overwrite=force)
                if stream is not None:
                    stream.flush()
    for note in notes:
        session.note(note)
    if not (to_stdout or session.quiet):
        records = [reader.directory.tensors[name] for name in names]
        n_stored = sum({r.alias_of or r.name: r.decoded_bytes for r in records}.values())
        tensors = f"{len(names):,} tensor{'' if len(names) == 1 else 's'}"
        print_lines([f"{printable(target)}: {tensors}, {n_stored:,} bytes"])
    seconds = time.perf_counter() - start
    session.detail(f"decoded {len(names)} tensors, {n_bytes:,} bytes in {seconds:.1f} s on {threads} threads")
    return DecodeError.exit_code if damages else 0


def _report(session: Session, file: str, damages: list[DecodeError], n_lost: int, n_tensors: int) -> None:
    """Say what is damaged, and how much of the model that is."""
    for damage in damages:
        session.error(session.locate(damage))
    if n_lost:
        end = ": nothing to salvage, nothing written" if n_lost == n_tensors else ""
        session.error(f"{file}: {n_lost} of {n_tensors} tensors lost{end}")


@click.command(short_help="Check a .dcz file from end to end.", help=_VERIFY_HELP, epilog=_VERIFY_EPILOG)
@click.argument("file")
@threads_option
@limit_option
@json_option
@quiet_option
@click.pass_obj
def verify(session: Session, file: str, threads: int, max_output: int | None, as_json: bool) -> int:
    """Check a frame from end to end; return the exit code."""
    from dcompress.errors import DecodeError
    from dcompress.inspection import read_receipt, read_torch_extra
    from dcompress.lazy import FrameTensors
    from dcompress.rescue import find_damage, names_of

    with open_reader(session, file, max_output=max_output, threads=threads, partial=True) as reader:
        directory = reader.directory
        stored = [record for record in directory.tensors.values() if record.alias_of is None]
        reader.check_output(stored)
        n_bytes = sum(record.decoded_bytes for record in stored)
        with session.progress("verifying", n_bytes) as progress:
            tensors = FrameTensors(reader, directory.tensors, progress)
            checks: list[Callable[[], object]] = [partial(tensors.__getitem__, r.name) for r in stored]
            checks += [
                reader.verify_sections,
                partial(read_receipt, reader),
                partial(read_torch_extra, reader),
            ]
            found = [reader.damage, *map(find_damage, checks)]
            named = [one for damage in found if damage is not None for one in names_of(reader, damage)]
        damages = list({str(damage): damage for damage in named}.values())
        for damage in damages:
            session.error(session.locate(damage))
    n_damaged = len({damage.tensor for damage in damages if damage.tensor is not None})
    if as_json:
        print_json(
            {
                "file": file,
                "ok": not damages,
                "n_tensors": len(directory.tensors),
                "n_damaged": n_damaged,
                "damages": [_describe(damage) for damage in damages],
            }
        )
    elif damages:
        session.error(
            f"{file}: damaged: {n_damaged} of {len(directory.tensors)} tensors; copy or download it again"
        )
    elif not session.quiet:
        n_chunks = sum(len(record.chunks) for record in stored)
        print_lines(
            [
                f"ok: {len(directory.tensors)} tensors, {n_chunks} chunks, {directory.frame_bytes:,} bytes, "
                f"{n_bytes:,} decoded"
            ]
        )
    return DecodeError.exit_code if damages else 0


def _select(reader: FrameReader, patterns: tuple[str, ...]) -> list[str]:
    """Return the names that any of the patterns matches, in order; all if there is no pattern.

    Raises
    ------
    UsageError
        A pattern matches nothing.
    """
    from fnmatch import fnmatchcase

    from dcompress.settings import near

    names = list(reader.directory.tensors)
    if not patterns:
        return names
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = near(pattern, names) or "; dcz info lists the tensors"
            raise click.UsageError(f"--tensor {pattern!r} matches no tensor{hint}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _describe(damage: DecodeError) -> dict[str, object]:
    """Return a damage as plain JSON values."""
    return {
        "tensor": damage.tensor,
        "offset": damage.offset,
        "rule": damage.rule,
        "message": damage.message,
    }
