"""Coverage-guided fuzzing of the Python reader with atheris (``pip install atheris``).

    python -m tests.fuzz.fuzz_decode raw        [libFuzzer options] [CORPUS]
    python -m tests.fuzz.fuzz_decode structured [libFuzzer options] [CORPUS]

``raw`` reads the bytes as a frame, with the comparison of checksums switched off, so that plain mutations
get deep. ``structured`` takes the bytes as choices: which legal frame, and which fields of it to change;
checksums and digests are made right, and checked. Both use everything that reads frames
(`tests.fuzz.frames.examine`); the kernels are those of NumPy, which can be watched. Any exception but a
decode error is a finding.
"""

# ruff: noqa: T201 (says how to get atheris)
from __future__ import annotations

import os
import sys
from functools import cache

N_FRAMES = 64


class Anything:
    """A checksum that equals every other."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def raw(data: bytes) -> None:
    """Read bytes as a frame."""
    from tests.fuzz.frames import examine

    examine(data)


def structured(data: bytes) -> None:
    """Change a legal frame as the bytes say, and read it."""
    from tests.fuzz.frames import DataDice, examine, mutated, sealed, written

    dice = DataDice(data)
    frame = dice.pick(pool())
    for _ in range(1 + dice.below(3)):
        frame = mutated(dice, frame)
    examine(sealed(frame) if dice.below(4) else written(frame))


@cache
def pool() -> list:
    """Return some small legal frames, always the same."""
    from tests.fuzz.frames import legal_frame

    frames: list = []
    seed = 0
    while len(frames) < N_FRAMES:
        seed += 1
        frame = legal_frame(seed)
        if len(frame.to_bytes()) < 700:
            frames.append(frame)
    return frames


def ignore_checksums() -> None:
    """Let every checksum and digest match."""
    from dcompress import decode, jobs
    from dcompress.container import reader

    decode.checksum = lambda *_: Anything()
    reader.checksum = lambda *_: Anything()
    jobs.fold = lambda *_: Anything()


def main() -> None:
    """Run the fuzzer; libFuzzer's options follow the mode."""
    modes = {"raw": raw, "structured": structured}
    if len(sys.argv) < 2 or sys.argv[1] not in modes:
        print(__doc__)
        sys.exit(2)
    try:
        import atheris
    except ImportError:
        print("atheris is missing: pip install atheris", file=sys.stderr)
        sys.exit(2)
    os.environ["DCOMPRESS_KERNELS"] = "numpy"
    mode = sys.argv.pop(1)
    with atheris.instrument_imports(include=["dcompress"], exclude=["dcompress.kernels.jit"]):
        import tests.fuzz.frames  # noqa: F401 (with all of the package that reads)
    if mode == "raw":
        ignore_checksums()
    else:
        pool()
    atheris.Setup(sys.argv, modes[mode])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
