"""Time calibrated encoding of one large linear layer: statistics, factors, labels, pruning; peak memory.

    python tools/bench_calibration.py                            4096 x 4096, a few minutes
    python tools/bench_calibration.py --columns 1024             a quick look
    python tools/bench_calibration.py --efforts 6 --threads 2

Each line is a process of its own, so that its peak memory is its own; kernels are compiled before the clock
starts. Labels are compared over all numbers of threads.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray

from dcompress import kernels
from dcompress.calibration.moments import Moments
from dcompress.constants import DTYPE_BY_NAME
from dcompress.feedback import Calibrated, Feedback
from dcompress.prune import prune
from dcompress.prune_feedback import prune_fed
from dcompress.rate_groups import GroupPlan
from dcompress.rules import RateRule
from dcompress.share import share
from dcompress.stages import SharedTensor

F32 = DTYPE_BY_NAME["float32"]
DEVIATION, STEP = 0.02, 0.01


def some_inputs(n: int, n_columns: int, seed: int) -> NDArray[np.float32]:
    """Return inputs with a quarter as many directions as columns, and noise."""
    rng = np.random.default_rng(seed)
    n_directions = max(1, n_columns // 4)
    mixing = np.random.default_rng(1).standard_normal((n_directions, n_columns), np.float32)
    latent = rng.standard_normal((n, n_directions), np.float32) @ mixing
    return latent / np.float32(n_directions**0.5) + np.float32(0.3) * rng.standard_normal(
        latent.shape, np.float32
    )


def some_moments(n_rows: int, n_columns: int, layout: str) -> Moments:
    """Return moments of twice as many inputs as columns, and of half as many held out."""
    inputs, held = some_inputs(2 * n_columns, n_columns, 2), some_inputs(n_columns // 2, n_columns, 3)
    counts = np.array([len(inputs)]), np.array([len(held)])
    shape = (n_rows, n_columns) if layout == "rows" else (n_columns, n_rows)
    blocks = [(one.T @ one)[None] for one in (inputs, held)]
    return Moments(
        ("linear",), shape, layout, counts[0], inputs.sum(0)[None], (blocks[0],), counts[1], (blocks[1],)
    )


def peak_bytes() -> int:
    """Return the most memory that the process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def timed(job: str, n_rows: int, n_columns: int, effort: int, threads: int) -> dict[str, object]:
    """Return seconds and peak memory of one job on a layer, after the same on a small one."""
    kernels.expect(1 << 40)  # Numba from the start
    clock = prepare(job, 192, 160, effort, threads)
    clock()
    run = prepare(job, n_rows, n_columns, effort, threads)
    before, start, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    digest = run()
    seconds = time.perf_counter() - start
    return {
        "job": job,
        "effort": effort,
        "threads": threads,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "M weights/s": round(n_rows * n_columns / seconds / 1e6, 2),
        "MB more": round((peak_bytes() - before) / 1e6),
        "digest": digest,
    }


def prepare(job: str, n_rows: int, n_columns: int, effort: int, threads: int) -> Callable[[], str]:
    """Return a function that does a job, and returns a digest of what it made."""
    if job == "statistics":
        return statistics(n_rows, n_columns)
    moments = some_moments(n_rows, n_columns, "transposed" if job == "transposed" else "rows")
    weights = np.random.default_rng(0).standard_normal(moments.shape, np.float32) * np.float32(DEVIATION)
    pruned = prune(weights)
    known = Calibrated("w", weights, pruned.mask, moments)

    def factors() -> str:
        fed = Feedback.of("w", weights, pruned.mask, STEP, moments)
        assert fed is not None
        return f"damping {fed.damping}"

    def labels() -> str:
        plan = GroupPlan({"w": (pruned, F32, RateRule(STEP))}, effort, threads)
        shared = plan.share("w", None if job == "uncalibrated" else known)
        assert isinstance(shared, SharedTensor)
        return hashlib.sha256(shared.gather().words.tobytes()).hexdigest()[:12]

    def codebook() -> str:
        shared = share(pruned, F32, n_centroids=32, calibrated=known)
        return hashlib.sha256(shared.labels.tobytes()).hexdigest()[:12]

    def pruning() -> str:
        fed = Feedback.of("w", weights, pruned.mask, None, moments)
        assert fed is not None
        return hashlib.sha256(prune_fed(fed, sparsity=0.5).values.tobytes()).hexdigest()[:12]

    return {"factors": factors, "codebook": codebook, "pruning": pruning}.get(job, labels)


def statistics(n_rows: int, n_columns: int) -> Callable[[], str]:
    """Return a function that calibrates the layer with twice as many inputs as it has columns."""
    import torch

    from dcompress.calibration.collect import calibrate

    layer = torch.nn.Linear(n_columns, n_rows, bias=False)
    batches = torch.split(torch.from_numpy(some_inputs(2 * n_columns, n_columns, 2)), 256)

    def run() -> str:
        return f"{int(calibrate(layer, batches)['weight'].n_vectors[0])} inputs"

    return run


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--columns", default=4096, show_default=True)
@click.option("--rows", type=int, help="As many as columns by default.")
@click.option("--efforts", default="6,9", show_default=True)
@click.option("--threads", default="1,2", show_default=True)
@click.option(
    "--jobs", default="statistics,factors,uncalibrated,labels,transposed,codebook,pruning", show_default=True
)
@click.option("--one", hidden=True, is_flag=True)
def main(columns: int, rows: int | None, efforts: str, threads: str, jobs: str, one: bool) -> None:
    """Run each job in a process of its own, and print a line for each."""
    if one:
        print(json.dumps(timed(jobs, rows or columns, columns, int(efforts), int(threads))))
        return
    for job in jobs.split(","):
        by_effort = job in ("labels", "transposed", "uncalibrated")
        for effort in efforts.split(",") if by_effort else ["6"]:
            digests = set()
            for count in threads.split(",") if by_effort else ["1"]:
                size = ["--columns", str(columns), "--rows", str(rows or columns)]
                own = ["--jobs", job, "--efforts", effort, "--threads", count, "--one"]
                done = subprocess.run(
                    [sys.executable, __file__, *size, *own], capture_output=True, text=True, check=True
                )
                print(done.stdout.strip(), flush=True)
                digests.add(json.loads(done.stdout)["digest"])
            if len(digests) > 1:
                sys.exit(f"{job}, effort {effort}: labels depend on the threads: {sorted(digests)}")


if __name__ == "__main__":
    main()
