"""Start `peer_worker.py` in the peers' interpreter, and lay out what came back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer_worker import PACKAGES

from dcompress.cli.table import Column, layout_table

Row = dict[str, Any]
WORKER = Path(__file__).with_name("peer_worker.py")


class PeerError(Exception):
    """A peer failed, or its interpreter does not run."""


@dataclass(frozen=True)
class Peers:
    """The interpreter that peers run in.

    Attributes
    ----------
    python : str
        Its path.
    """

    python: str

    def installed(self) -> dict[str, str]:
        """Return the version of every peer that is installed; print them, and why others are not.

        An interpreter that does not even run the worker has no peers.
        """
        with TemporaryDirectory() as name:
            try:
                found = _run(self.python, Path(name), {"task": "versions"})
            except PeerError as error:
                found = {"versions": {}, "reasons": dict.fromkeys(PACKAGES, str(error))}
        versions: dict[str, str] = found["versions"]
        for peer in PACKAGES:
            print(f"{peer}: {versions.get(peer) or 'not installed: ' + found['reasons'][peer]}")
        return versions

    @contextmanager
    def share(self, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Workplace]:
        """Lay out arrays for the peers, in a temporary folder."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            numbered = {str(number): array for number, array in enumerate(arrays.values())}
            np.savez(folder / "arrays.npz", **numbered)  # type: ignore[arg-type]
            yield Workplace(self.python, folder, list(arrays))


@dataclass(frozen=True)
class Workplace:
    """A folder with arrays that peers work on.

    Attributes
    ----------
    python : str
        Path of the interpreter.
    folder : Path
        The folder.
    names : list of str
        Names of the arrays.
    """

    python: str
    folder: Path
    names: list[str]

    def ask(self, **job: Any) -> Row:
        """Return the worker's result for a job.

        Raises
        ------
        PeerError
            The peer failed.
        """
        return _run(self.python, self.folder, job | {"names": self.names})

    def decoded(self, qp: int) -> dict[str, NDArray[Any]]:
        """Return the arrays that a peer decoded, if the job asked to keep them."""
        with np.load(self.folder / f"decoded{qp}.npz") as stored:
            return {name: stored[str(number)] for number, name in enumerate(self.names)}


def _run(python: str, folder: Path, job: Row) -> Row:
    """Run the worker in a folder, its output thrown away: peers print a lot."""
    (folder / "job.json").write_text(json.dumps(job))
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [python, str(WORKER), str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise PeerError(f"{python} does not run: {error.strerror}") from None
    if not result.exists():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PeerError(lines[-1])
    answer: Row = json.loads(result.read_text())
    return answer


def print_table(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Print rows as a table.

    Parameters
    ----------
    title : str
        Stands above it.
    rows : sequence of dict
        Figures by key; what a row does not have is a dash.
    columns : mapping of str to str
        Key -> heading and format, as in ``"ratio .4f"``. The first column is text.
    """
    laid_out = []
    for number, (key, heading_and_format) in enumerate(columns.items()):
        heading, _, how = heading_and_format.rpartition(" ")
        cells = ["-" if row.get(key) is None else format(row[key], how) for row in rows]
        laid_out.append(Column(heading, cells, right=number > 0))
    print(f"\n{title}")
    for line in layout_table(laid_out, None):
        print(f"  {line}")
