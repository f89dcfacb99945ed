"""Time the C decoder of spec/reference against the Numba kernels, one thread each, as ratios.

    python tools/bench_c.py                        4 M weights
    python tools/bench_c.py --weights 16000000 --cc clang

Both decode the same frames from memory into memory in use, checksums and digests included, and take turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import as_tensor, cases, frame_of, normal_weights
from numpy.typing import NDArray

from dcompress.constants import CODER_NAMES
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.recipe import Recipe
from dcompress.stages import Checkpoint
from dcompress.step_search import encode_to_target
from dcompress.targets import make_target

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "spec" / "reference"

DRIVER = r"""
#define _POSIX_C_SOURCE 200809L
#include "dcz_decode.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
/* reads a frame; for every line on stdin decodes its first tensor once, and prints the seconds */
int main(int argc, char **argv) {
    FILE *file = fopen(argv[argc - 1], "rb");
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file), room = (size_t)64 << 20;
    rewind(file);
    uint8_t *data = malloc(size), *workspace = malloc(room);
    if (fread(data, 1, size, file) != size) return 1;
    dcz_frame frame;
    dcz_tensor t;
    dcz_decoder d;
    if (dcz_open(&frame, data, size, NULL, workspace, room, NULL) != DCZ_OK) return 1;
    dcz_tensor_at(&frame, 0, &t, NULL, 0);
    uint8_t *out = malloc((size_t)t.n_bytes);
    memset(out, 1, (size_t)t.n_bytes);
    for (int c = getchar(); c != EOF; c = getchar()) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        dcz_init(&d);
        if (dcz_decode(&d, &frame, &t, out, (size_t)t.n_bytes, workspace, room, NULL) != DCZ_OK) return 1;
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%.9f\n", (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec));
        fflush(stdout);
    }
    return 0;
}
"""


def structured_weights(width: int, n_rows: int) -> NDArray[np.float32]:
    """Return weights that are 0 for 90 % of the places, most of them in some rows and columns."""
    rng = np.random.default_rng(3)
    density = np.outer(rng.lognormal(0, 1.5, n_rows), rng.lognormal(0, 1.5, width))
    density *= 0.1 / density.mean()
    for _ in range(20):
        density *= 0.1 / np.minimum(density, 1).mean()
    kept = rng.random(density.shape) < density
    return (np.round(rng.normal(0, 4, density.shape)) * kept / 64).astype(np.float32).ravel()


def frames(n: int) -> dict[str, bytes]:
    """Return a frame of one tensor for each case."""
    made = {name: frame_of(tensor).to_bytes() for name, tensor in cases(n).items()}
    uniform = np.random.default_rng(1).integers(0, 16, n).astype(np.float32) - 7.5
    made["fixed, 16 values"] = frame_of(as_tensor(uniform)).to_bytes()
    wide = np.random.default_rng(2).lognormal(0, 6, n).astype(np.float32).view(np.uint32) >> 16
    made["bfloat16 of wide range"] = frame_of(as_tensor(wide.astype(np.uint16), "bfloat16")).to_bytes()
    side = 1 << (int(np.log2(n)) // 2)
    for name, weights in (("dense", normal_weights(n)), ("90 % sparse", structured_weights(side, n // side))):
        tensor = as_tensor(weights[: side * (n // side)].reshape(-1, side))
        made[f"context, 8 lanes, {name}"] = encode_checkpoint(
            Checkpoint({"w": tensor}), Recipe("balanced"), effort=9
        ).to_bytes()
    short = as_tensor(structured_weights(100, 160).reshape(160, 100))
    made["context, 4 lanes, 90 % sparse"] = encode_checkpoint(
        Checkpoint({"w": short}), Recipe("balanced"), effort=9
    ).to_bytes()
    for name, size in (("8 lanes", n), ("4 lanes", 16000)):
        rows = max(8, size // 1024)
        tensor = as_tensor(normal_weights(rows * (size // rows)).reshape(rows, -1))
        target = make_target(quality=20.0)
        assert target is not None
        made[f"context, trellis, {name}"] = encode_to_target(
            Checkpoint({"w": tensor}), Recipe("balanced"), target, effort=9
        ).frame.to_bytes()
    return made


def coder_of(frame: bytes) -> str:
    """Return the coder of the tensor."""
    return CODER_NAMES[open_frame(frame).directory.tensors["w"].coder]


def race(program: Path, frame: bytes, folder: Path, rounds: int) -> tuple[float, float, int]:
    """Return the least seconds of Numba and of C, and the bytes decoded."""
    path = folder / "frame.dcz"
    path.write_bytes(frame)
    reader = open_frame(frame)
    name = "w"
    out = reader.read_tensor(name).words.copy()
    with subprocess.Popen(
        [program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds + 1):
            start = time.perf_counter()
            reader.read_tensor(name, out)
            times[0].append(time.perf_counter() - start)
            process.stdin.write("\n")
            process.stdin.flush()
            times[1].append(float(process.stdout.readline()))
        process.stdin.close()
    return min(times[0][1:]), min(times[1][1:]), out.nbytes


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cc", default="gcc")
    parser.add_argument("--flags", default="-O3")
    args = parser.parse_args()
    os.environ["DCOMPRESS_KERNELS"] = "numba"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench.c").write_text(DRIVER)
        program = folder / "bench"
        sources = [folder / "bench.c", REFERENCE / "dcz_decode.c"]
        command = [
            args.cc,
            "-std=c99",
            *args.flags.split(),
            f"-I{REFERENCE}",
            *map(str, sources),
            "-o",
            str(program),
        ]
        subprocess.run(command, check=True)
        print(
            "| case | coder | Numba GB/s | C GB/s | time of C / Numba |\n| --- | --- | ---: | ---: | ---: |"
        )
        for case, frame in frames(args.weights).items():
            numba, c, n_bytes = race(program, frame, folder, args.rounds)
            row = f"| {case} | {coder_of(frame)} | {n_bytes / numba / 1e9:.2f} | {n_bytes / c / 1e9:.2f} |"
            print(f"{row} {c / numba:.2f} |", flush=True)


if __name__ == "__main__":
    main()
