"""Differential fuzzer: the same bytes through every decoder, which must say the same.

    python -m tests.fuzz.fuzz_differential [--seconds N] [--seed N] [--driver PATH] [--spec N] [--save FOLDER]
                                           [--collect FOLDER]

Frames are random legal ones with one to three changes, sealed with right checksums and digests
(`tests/fuzz/frames.py`). The decoders: NumPy kernels, Numba kernels, the C decoder of spec/reference (built
with cc, or given as ``--driver``; left out with a word where there is no compiler), and for every
``--spec``-th frame the pseudo-code of the spec.

What is compared: whether a frame is accepted, and then names, dtypes, shapes and bits of all tensors, always.
Of a frame that breaks several rules a decoder may name any (spec section 3), and one change can break
several. So other rules for a single change are counted and printed at the end for a look, and are no failure.
Exit code 1 after a real difference; the frame is saved.

``--collect`` keeps the smallest frame of each rule, and of each set of coders that is accepted: so the corpus
of this folder was made.
"""

# ruff: noqa: T201 (prints what it finds)
from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dcompress.decode import open_frame
from tests.fuzz.frames import LIMITS, Dice, legal_frame, mutated, sealed, verdict, written

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "spec" / "reference"
N_POOL = 150
RENEW = 40  # executions after which one frame of the pool makes room for a new one


def build_driver(folder: str | Path, *flags: str) -> Path | None:
    """Return the C driver, compiled; None if there is no compiler or no C decoder."""
    compiler = shutil.which("cc")
    sources = (ROOT / "tests" / "fuzz" / "differential_driver.c", REFERENCE / "dcz_decode.c")
    if compiler is None or not sources[1].exists():
        return None
    target = Path(folder) / "differential_driver"
    options = ("-std=c99", *(flags or ("-O2", "-g")), "-I", REFERENCE)
    subprocess.run([compiler, *map(str, (*options, *sources)), "-o", str(target)], check=True)
    return target


class Driver:
    """The C decoder, as one process that answers frame by frame."""

    def __init__(self, path: str | Path) -> None:
        limits = (LIMITS.max_output_bytes, LIMITS.max_directory_bytes, LIMITS.max_tensors, LIMITS.max_rank)
        command = [str(path), *map(str, limits)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def verdict(self, data: bytes) -> str:
        """Return what the C decoder says; ``died`` if it is no more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(struct.pack("<I", len(data)) + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            return "died"
        return self._process.stdout.readline().decode().strip() or "died"

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def with_kernels(name: str, data: bytes) -> str:
    """Return what the package says with one set of kernels."""
    os.environ["DCOMPRESS_KERNELS"] = name
    return verdict(data)


def same(first: str, second: str) -> bool:
    """Whether two decoders agree as far as they must: on acceptance, and on all tensors."""
    return first == second or not any(one.startswith(("ok", "died")) for one in (first, second))


class Pool:
    """Legal frames to change, renewed bit by bit."""

    def __init__(self, seed: int) -> None:
        self._seed = seed << 20
        self._frames = [self._next() for _ in range(N_POOL)]

    def _next(self):
        while True:
            self._seed += 1
            frame = legal_frame(self._seed)
            data = frame.to_bytes()
            # Small ones say as much, and sooner.
            if len(data) < 3000 and verdict(data).startswith("ok"):
                return frame

    def pick(self, dice: Dice):
        """Return a frame; now and then a new one."""
        place = dice.below(N_POOL)
        if dice.below(RENEW) == 0:
            self._frames[place] = self._next()
        return self._frames[place]


def next_frame(dice: Dice, pool: Pool) -> tuple[bytes, int]:
    """Return the next frame to try, and how many changes it has."""
    frame, n_changes = pool.pick(dice), dice.pick((1, 1, 1, 2, 3))
    for _ in range(n_changes):
        frame = mutated(dice, frame)
    # Mostly sealed anew: otherwise every change of a payload ends with its digest.
    return (sealed(frame) if dice.below(8) else written(frame)), n_changes


def main() -> int:
    """Run until the time is up; print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--driver", type=Path)
    parser.add_argument("--spec", type=int, default=50, help="pseudo-code for every Nth frame; 0: never")
    parser.add_argument("--collect", type=Path)
    parser.add_argument("--save", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    folder = tempfile.mkdtemp()
    path = options.driver or build_driver(folder)
    driver = Driver(path) if path is not None else None
    if driver is None:
        print("no compiler or no C decoder: the Python decoders only", file=sys.stderr)
    spec = load_pseudo_code() if options.spec else None
    os.environ["DCOMPRESS_KERNELS"] = "numba"
    dice, pool = Dice(options.seed), Pool(options.seed)
    counts: Counter[str] = Counter()
    other_rules: Counter[str] = Counter()
    failures, start = 0, time.process_time()
    while time.process_time() - start < options.seconds:
        os.environ["DCOMPRESS_KERNELS"] = "numba"
        data, n_changes = next_frame(dice, pool)
        answers = {"numba": verdict(data), "numpy": with_kernels("numpy", data)}
        if driver is not None:
            answers["c"] = driver.verdict(data)
        if spec is not None and counts.total() % options.spec == 0 and len(data) < 1500:
            answers["spec"] = spec(data)
        counts[answers["numba"][:6] if not answers["numba"].startswith("ok") else "accepted"] += 1
        if options.collect is not None and len(set(answers.values())) == 1:
            collect(options.collect, data, answers["numba"])
        if not all(same(answers["numba"], answer) for answer in answers.values()):
            failures += 1
            saved = options.save / f"difference-{hashlib.sha256(data).hexdigest()[:12]}.dcz"
            saved.write_bytes(data)
            print(f"DIFFERENCE {answers}: {saved}", flush=True)
            if answers.get("c") == "died" and path is not None:
                driver = Driver(path)
        elif n_changes == 1 and len(set(answers.values())) > 1:
            other_rules[" ".join(f"{name}:{answer}" for name, answer in sorted(answers.items()))] += 1
    if driver is not None:
        driver.close()
    shutil.rmtree(folder)
    report(counts, other_rules, failures, time.process_time() - start)
    return 1 if failures else 0


def collect(folder: Path, data: bytes, answer: str) -> None:
    """Keep a frame if it is the smallest of its kind."""
    kind = answer
    if answer.startswith("ok"):
        with open_frame(data) as reader:
            records = list(reader.directory.tensors.values())
        kind = "ok-" + "".join(sorted({str(record.coder) for record in records if record.chunks}))
    path = folder / f"{kind}.dcz"
    if not path.exists() or len(data) < path.stat().st_size:
        path.write_bytes(data)


def load_pseudo_code():
    """Return a function that tells what the pseudo-code of the spec says."""
    from tests.fuzz.pseudo_code import verdict_of_spec

    return verdict_of_spec


def report(counts: Counter[str], other_rules: Counter[str], failures: int, seconds: float) -> None:
    """Print what was run and found."""
    print(f"{counts.total():,} executions in {seconds:.0f} CPU seconds, {failures} differences")
    print(f"{counts['accepted']:,} accepted; {len(counts) - 1} rules: ", end="")
    print(", ".join(f"{rule} {n:,}" for rule, n in sorted(counts.items()) if rule != "accepted"))
    if other_rules:
        print("other rules for the same single change, which the spec allows:")
        for text, n in other_rules.most_common(20):
            print(f"  {n:>7,}  {text}")


if __name__ == "__main__":
    sys.exit(main())
