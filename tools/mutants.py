"""Plant deliberate bugs one by one in a copy of the package, and see whether the tests catch them.

    python tools/mutants.py [--only WORD] [--list]

Prints a line for each bug: caught, by which test, after how long; ends with 1 if any survives. A test that fails
without the bug, or that cannot be run, catches nothing: that is an error. The working tree is never touched, and may
change meanwhile. A text that is no longer there, or not once, is an error: bugs move with the code.
"""

# ruff: noqa: E501 (what is changed stands in one line, as it does in the code)
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("dcompress", "tests", "spec", "fixtures", "tools", "pyproject.toml", "README.md", "CHANGELOG.md")

READER = "container/reader.py"
HUFFMAN = "coding/huffman.py"
RUNS = "coding/zero_run.py"
CONTEXT = "coding/context.py"
CLASSES = "coding/classes.py"
LANES = "coding/lanes.py"
KERNEL = "kernels/reference.py"
KERNEL_SYMBOLS = "kernels/reference_symbols.py"
KERNEL_CONTEXT = "kernels/reference_context.py"
JIT_RUNS = "kernels/jit_runs.py"
JIT_CONTEXT = "kernels/jit_context.py"

# Which tests are run for a bug in a file, those most likely to catch it first.
FRAMES = "tests/properties/test_frames.py"
CORPUS = "tests/fuzz/test_corpus.py"
TESTS = {
    READER: ("tests/unit/test_reader.py", FRAMES, "tests/robustness/test_bombs.py"),
    "cursor.py": ("tests/unit/test_cursor.py", "tests/unit/test_reader.py"),
    "decode.py": ("tests/unit/test_decode.py", FRAMES, "tests/robustness/test_salvage.py"),
    "jobs.py": ("tests/unit/test_decode.py", FRAMES, "tests/robustness/test_salvage.py"),
    "rescue.py": ("tests/robustness/test_salvage.py",),
    "atomic.py": ("tests/unit/test_atomic.py", "tests/robustness/test_crashes.py"),
    "checksum.py": ("tests/unit/test_checksum.py", FRAMES),
    HUFFMAN: ("tests/unit/test_huffman.py", "tests/robustness/test_code_lengths.py"),
    RUNS: ("tests/unit/test_zero_run.py", FRAMES),
    LANES: ("tests/unit/test_lanes.py", "tests/unit/test_zero_run.py", "tests/unit/test_labels.py"),
    CONTEXT: ("tests/unit/test_context.py", "tests/unit/test_context_frames.py", FRAMES),
    CLASSES: ("tests/unit/test_context.py", "tests/robustness/test_bombs.py"),
    "coding/base.py": ("tests/unit/test_labels.py", FRAMES),
    "coding/labels.py": ("tests/unit/test_labels.py", FRAMES),
    "coding/plain.py": ("tests/unit/test_plain.py", FRAMES),
    KERNEL: ("tests/unit/test_zero_run.py", "tests/unit/test_kernels.py", CORPUS),
    KERNEL_SYMBOLS: ("tests/unit/test_kernels.py", "tests/unit/test_labels.py", CORPUS),
    KERNEL_CONTEXT: ("tests/unit/test_context.py", CORPUS),
    JIT_RUNS: (
        "tests/robustness/test_kernel_bounds.py",
        "tests/unit/test_zero_run.py",
        "tests/unit/test_kernels.py",
    ),
    JIT_CONTEXT: ("tests/unit/test_context.py", CORPUS),
}


class Mutant(NamedTuple):
    """A deliberate bug: in this file, this text becomes that one."""

    path: str
    before: str
    after: str
    bug: str


MUTANTS = (
    # Missing checks and wrong bounds of the reader.
    Mutant(READER, "if checksum(sealed) != stored:", "if False:", "the head's checksum is not checked"),
    Mutant(READER, "if size > MAX_TABLE_SET_BYTES:", "if size > MAX_TABLE_SET_BYTES + 1:", "off by one: table sets"),
    Mutant(READER, "if shared > len(encoded):", "if shared > len(encoded) + 1:", "off by one: shared prefixes"),
    Mutant(READER, "        if name in tensors:", "        if not name and name in tensors:", "names may stand twice"),
    Mutant(READER, "if number >= len(earlier) or", "if number > len(earlier) or", "off by one: aliases"),
    Mutant(READER, "or earlier[number].alias_of is not None:", "or False:", "aliases of aliases"),
    Mutant(READER, "n_bytes *= max(1, size)", "n_bytes *= size", "huge sizes hide behind a 0"),
    Mutant(READER, "if n_bytes > _MAX_BYTES:", "if n_bytes >= _MAX_BYTES << 1:", "shapes may reach 2**64"),
    Mutant(READER, "    if n_kept > n_words:", "    if n_kept > n_words + 1:", "off by one: kept words"),
    Mutant(READER, "if n_chunks * _CHUNK_RECORD_BYTES > cursor.remaining:", "if False:", "room for the records of chunks"),
    Mutant(READER, "or n_chunks < 2:", "or n_chunks < 1:", "a single chunk that says it is one of many"),
    Mutant(READER, 'cursor.finish("DIR-01")', "pass", "bytes may follow the directory"),
    Mutant(READER, "size = cursor.varint(_MAX_BYTES - at)\n        chunks", "size = cursor.varint()\n        chunks", "offsets wrap"),
    Mutant("cursor.py", "if (byte == 0 and shift) or", "if", "numbers may be longer than they need be"),
    Mutant("cursor.py", "if n_bytes > self.remaining:", "if n_bytes > self.remaining + 1:", "off by one: take"),
    # The frame.
    Mutant("decode.py", "if checksum(chunk, work) != stored.checksum:", "if False:", "checksums of chunks"),
    Mutant("decode.py", "if total > allowed:", "if total > 2 * allowed:", "twice the limit may be decoded"),
    Mutant("decode.py", "            reader.finish()\n", "", "bytes of tables may be left"),
    Mutant("jobs.py", "if record.coder != CODER_RAW and fold(total) != record.digest:", "if False:", "digests"),
    Mutant("jobs.py", "if record.coder in RUN_CODERS and n_kept != record.n_kept:", "if False:", "counts of kept words"),
    Mutant("jobs.py", "if n_bytes > frame_bytes:", "if n_bytes > frame_bytes + 1:", "one byte may follow the end"),
    Mutant("jobs.py", "chunk.offset + chunk.n_bytes > n_bytes", "chunk.offset > n_bytes", "tensors cut in their last chunk"),
    Mutant("rescue.py", "if record.alias_of is not None and record.alias_of == damage.tensor:", "if False:", "lost aliases"),
    Mutant("atomic.py", "            os.fsync(descriptor)\n        if", "        if", "files are not synced before they are renamed"),
    Mutant("checksum.py", "total >> 32", "total >> 31", "the fold of a checksum"),
    # Huffman codes.
    Mutant(HUFFMAN, "        if kraft != whole:", "        if kraft > whole:", "incomplete codes are accepted"),
    Mutant(HUFFMAN, "        if kraft != whole:", "        if kraft < whole:", "oversubscribed codes are accepted"),
    Mutant(HUFFMAN, "if used_by_length[1] != 1:", "if False:", "a lone symbol of any length"),
    Mutant(HUFFMAN, "if n_used == 0 or", "if", "codes without a symbol"),
    Mutant(HUFFMAN, 'argsort(kind="stable")', "argsort()[::-1]", "wrong order of codes"),
    # Zero runs, lanes, labels, planes.
    Mutant(RUNS, "n_symbols = cursor.varint(out.size)", "n_symbols = cursor.varint(out.size + 1)", "off by one: entries"),
    Mutant(RUNS, 'cursor.finish("RUN-03")', "pass", "bytes may follow the lanes"),
    Mutant(RUNS, "if not codebook.has_zero or codebook.n_labels < 2:", "if codebook.n_labels < 2:", "runs without zeros"),
    Mutant(RUNS, "return self.raw_bits > 0 or self.code.lone_symbol is None", "return True", "entries without bits"),
    Mutant(RUNS, "labels[-1] = 0", "labels[-1] = 1", "fillers write a value"),
    Mutant(RUNS, "runs = (place // n_columns) << self.raw_bits", "runs = place // n_columns", "raw bits do not count"),
    Mutant(LANES, "share = -(-n_symbols // N_LANES)", "share = n_symbols // N_LANES", "shares of lanes rounded down"),
    Mutant(LANES, "if n_symbols < LANE_THRESHOLD:", "if n_symbols <= LANE_THRESHOLD:", "off by one: when lanes begin"),
    Mutant(KERNEL, "    if last >= out.size:", "    if last > out.size:", "off by one: the end of a chunk"),
    Mutant(KERNEL, "        if start != position:\n            return OVERRUN\n        windows =", "        windows =", "lanes need not meet"),
    Mutant(KERNEL, "words >>= 24 - raw_bits - (bits & 7)", "words >>= 24 - raw_bits", "raw bits within a byte"),
    # Contexts.
    Mutant(CONTEXT, "if states.min() < LOWEST_STATE:", "if False:", "states that cannot be"),
    Mutant(CONTEXT, "if len(chunk) % 2 or", "if", "chunks of an odd size"),
    Mutant(CONTEXT, "if states and tables.n_quantisers < 2:", "if False:", "a trellis without tables"),
    Mutant(KERNEL_CONTEXT, "wrong = (places < 0) |", "wrong =", "places below the codebook"),
    Mutant(CLASSES, "    if left < 0:", "    if left < -1:", "off by one: classes for so many bytes"),
    Mutant(CLASSES, "or rows.max() > MAX_CLASS:", "or False:", "classes of rows above 63"),
    Mutant(KERNEL_CONTEXT, "    if place < n_words:\n        return SURPLUS\n", "", "words may be left over"),
    Mutant(KERNEL_CONTEXT, "return UNFINISHED if any(x != LOWEST_STATE for x in states) else OK", "return OK", "lanes may end anywhere"),
    Mutant(KERNEL_CONTEXT, "if not 0 <= label < given.lookup.size:", "if label >= given.lookup.size:", "labels below 0"),
    Mutant(KERNEL_CONTEXT, "            if place > n_words:\n                return SHORT\n", "", "words beyond the end"),
    # Compiled kernels.
    Mutant(JIT_RUNS, "            if here >= size:\n                return OVERRUN\n            value = lookup[U64(entry) >> U64(18)]", "            if here > size:\n                return OVERRUN\n            value = lookup[U64(entry) >> U64(18)]", "off by one: the end of a chunk"),
    Mutant(JIT_RUNS, "step_out = 2 * most", "step_out = most", "too far without a look at the room"),
)  # fmt: skip


def source(mutant: Mutant, root: Path = ROOT) -> str:
    """Return the changed text of a file.

    Raises
    ------
    ValueError
        What is to be changed does not stand there once.
    """
    text = (root / "dcompress" / mutant.path).read_text(encoding="utf-8")
    if text.count(mutant.before) != 1:
        raise ValueError(f"{mutant.path}: {mutant.before!r} stands there {text.count(mutant.before)} times")
    return text.replace(mutant.before, mutant.after)


def make_copy() -> Path:
    """Return a copy of the project, with what Numba has compiled."""
    target = Path(tempfile.mkdtemp(prefix="mutants-"))
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name)
        else:
            shutil.copy2(ROOT / name, target / name)
    return target


def run_tests(folder: Path, test: str, *options: str) -> tuple[int, str]:
    """Return the exit code of pytest, and the first test that failed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test, *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode not in (0, 1, 5) and done.returncode > 0:
        raise RuntimeError(f"{test} cannot be run:\n{done.stdout[-2000:]}{done.stderr[-1000:]}")
    return done.returncode, failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else ""


def forget_compiled(folder: Path, mutant: Mutant) -> None:
    """Delete what Numba has compiled: callers of what was changed are not compiled anew by themselves."""
    for cached in (folder / "dcompress").rglob("*.nb[ic]") if "jit" in mutant.path else ():
        cached.unlink()


def try_mutant(folder: Path, mutant: Mutant) -> str:
    """Return the test that catches a bug, empty if none does."""
    path = folder / "dcompress" / mutant.path
    original = path.read_text(encoding="utf-8")
    options = () if "jit" in mutant.path else ("-k", "not numba")
    caught = ""
    try:
        path.write_text(source(mutant, folder), encoding="utf-8")
        forget_compiled(folder, mutant)
        for test in TESTS[mutant.path]:
            if (folder / test).exists():
                code, failed = run_tests(folder, test, *options)
                caught = (failed or f"{test} (exit {code})") if code not in (0, 5) else ""
            if caught:
                break
    finally:
        path.write_text(original, encoding="utf-8")
        forget_compiled(folder, mutant)
    if caught and run_tests(folder, caught.split(" (exit")[0], *options)[0] != 0:
        raise RuntimeError(f"{caught} fails without the bug: {mutant.bug}")
    return caught


def main() -> int:
    """Try all bugs, or some; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="those with this word in their path or description")
    parser.add_argument("--list", action="store_true", help="list them and try none")
    options = parser.parse_args()
    chosen = [one for one in MUTANTS if options.only in f"{one.path} {one.bug}"]
    for mutant in chosen:
        source(mutant)
    if options.list:
        print(*(f"{one.path}: {one.bug}" for one in chosen), sep="\n")
        return 0
    folder = make_copy()
    survivors = 0
    try:
        for mutant in chosen:
            start = time.perf_counter()
            caught = try_mutant(folder, mutant)
            survivors += not caught
            seconds = time.perf_counter() - start
            print(
                f"{'caught' if caught else 'SURVIVED':8} {seconds:5.1f} s  {mutant.path}: {mutant.bug}",
                end="",
            )
            print(f"  [{caught}]" if caught else "", flush=True)
    finally:
        shutil.rmtree(folder)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
