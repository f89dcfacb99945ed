"""Run the code blocks of a Markdown file, and put what they print into the ``text`` blocks below them.

Usage: ``python tools/run_tutorial.py [FILE.md] [--write]``; FILE.md is tools/tutorial.md. Without ``--write``
the outputs are printed and nothing is changed. Blocks run in order, in an empty folder in which ``spec`` is
that of the repository: ``python`` blocks one after the other in one namespace, ``sh`` blocks by a shell. A
block after ``<!-- file: NAME -->`` is written to that file instead.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
TUTORIAL = Path(__file__).with_name("tutorial.md")
_BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)```\n", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code, or of output.

    Attributes
    ----------
    kind : str
        Its language; ``text`` is output of the block before.
    body : str
        What stands in it.
    file : str or None
        The file that it is.
    start, stop : int
        Where its body stands in the document.
    """

    kind: str
    body: str
    file: str | None
    start: int
    stop: int


def blocks_of(document: str) -> list[Block]:
    """Return the blocks of a document, in order."""
    return [
        Block(found["kind"], found["body"], found["file"], *found.span("body"))
        for found in _BLOCK.finditer(document)
    ]


def run_blocks(
    blocks: list[Block], folder: Path, change: Callable[[str], str] = str
) -> Iterator[tuple[Block, str, dict[str, Any]]]:
    """Run blocks, and yield each with what it printed and the namespace after it.

    Parameters
    ----------
    blocks : list of Block
        As `blocks_of` returns them; ``text`` is left out.
    folder : Path
        Where they run: the working directory meanwhile.
    change : callable
        From the body of a block to what is run; a test makes it shorter.

    Raises
    ------
    RuntimeError
        A shell failed; its output is named.
    """
    namespace: dict[str, Any] = {}
    (folder / "spec").symlink_to(ROOT / "spec")
    for block in blocks:
        printed = ""
        body = change(block.body)
        if block.kind == "text":
            continue
        with _inside(folder):
            if block.file is not None:
                Path(block.file).write_text(body, encoding="utf-8")
            elif block.kind == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(body, f"block at {block.start}", "exec"), namespace)  # the point of it
                printed = out.getvalue()
            elif block.kind == "sh":
                printed = _shell(body)
        yield block, printed, namespace


def _shell(body: str) -> str:
    """Return what commands print; ``dcz`` and ``python`` are those of this interpreter."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    environment = {**os.environ, "PATH": os.pathsep.join(places), "NO_COLOR": "1"}
    done = subprocess.run(
        ["sh", "-e", "-c", body], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{body}ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def with_outputs(document: str, printed: dict[int, str]) -> str:
    """Return a document with what blocks printed; ``printed`` has it by the start of the ``text`` block."""
    for block in reversed(blocks_of(document)):
        if block.start in printed:
            document = document[: block.start] + printed[block.start] + document[block.stop :]
    return document


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=TUTORIAL)
@click.option("--write", is_flag=True, help="Change the file.")
def main(path: Path, write: bool) -> None:
    """Run the blocks of a document."""
    document = path.read_text(encoding="utf-8")
    blocks = blocks_of(document)
    pairs = itertools.pairwise(blocks)
    below = {block.start: after for block, after in pairs if after.kind == "text"}
    printed = {}
    with tempfile.TemporaryDirectory() as folder:
        for block, output, _ in run_blocks(blocks, Path(folder)):
            click.echo(output, nl=False)
            if block.start in below:
                printed[below[block.start].start] = output
    if write:
        path.write_text(with_outputs(document, printed), encoding="utf-8")


if __name__ == "__main__":
    main()
