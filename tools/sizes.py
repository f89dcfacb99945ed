"""Compare whole files with the order-0 entropy of their labels plus float32 codebooks.

    python tools/sizes.py               all sizes, values, sparsities (about five minutes)
    python tools/sizes.py --quick       100,000 weights only

Weights are Laplace or evenly spread over equally spaced values, pruned by magnitude or at random. The file
holds the layer under the name ``layer.weight``; everything in it counts.
"""

from __future__ import annotations

import itertools

import click
import numpy as np
from numpy.typing import NDArray

import dcompress.numpy

VALUES = (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 127, 255)
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
MIN_KEPT = 10_000
LIMITS = {100_000: 1.03, 1_000_000: 1.01}


def laplace(n: int, n_values: int, sparsity: float) -> NDArray[np.float32]:
    """Return Laplace weights, the small ones zero, the others rounded to equally spaced values."""
    weights = np.random.default_rng(0).laplace(size=n)
    kept = np.abs(weights) > np.quantile(np.abs(weights), sparsity)
    values = np.linspace(-6.1, 6.3, n_values + 2)[1:-1]
    nearest = np.clip(np.round((weights - values[0]) / 12.4 * (n_values + 1)), 0, n_values - 1).astype(int)
    return np.where(kept, values[nearest], 0).astype(np.float32)


def even(n: int, n_values: int, sparsity: float) -> NDArray[np.float32]:
    """Return weights pruned at random, all values equally frequent."""
    rng = np.random.default_rng(1)
    values = np.linspace(-1.3, 1.5, n_values)
    return np.where(rng.random(n) < sparsity, 0, rng.choice(values, n)).astype(np.float32)


def entropy_bytes(weights: NDArray[np.float32]) -> float:
    """Return the order-0 entropy of the labels, plus four bytes for each value but zero."""
    values, counts = np.unique(weights, return_counts=True)
    chances = counts / weights.size
    return float(-(counts * np.log2(chances)).sum() / 8 + 4 * np.count_nonzero(values))


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="100,000 weights only.")
def main(quick: bool) -> None:
    """Print every case above half of its margin, and the worst of each size."""
    for n, limit in LIMITS.items():
        if quick and n > 100_000:
            continue
        worst = 0.0
        cases = 0
        for make, n_values, sparsity in itertools.product((laplace, even), VALUES, SPARSITIES):
            weights = make(n, n_values, sparsity)
            if np.count_nonzero(weights) < MIN_KEPT:
                continue
            n_bytes = len(dcompress.numpy.save({"layer.weight": weights}, recipe="lossless"))
            ratio = n_bytes / entropy_bytes(weights)
            worst = max(worst, ratio)
            cases += 1
            if ratio > 1 + (limit - 1) / 2:
                print(f"{n:9,} {make.__name__:8} {n_values:3} values {sparsity:.0%} sparse {ratio:.4f}")
        print(f"{n:9,} weights, {cases} cases: worst {worst:.4f}, allowed {limit}")


if __name__ == "__main__":
    main()
