"""Time the codec against np.copyto and the peers that are installed, in one run, as ratios.

    python tools/bench.py                      16 M weights, a few minutes
    python tools/bench.py --weights 1000000    a quick look
    python tools/bench.py --only decode,load   some of the tables

Contestants of a table take turns, so that a machine whose speed drifts is the same for all; medians count.
zstandard, zipnn, safetensors and torch take part where they are installed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from dcompress.choice import choose_plain, choose_shared
from dcompress.constants import DTYPE_BY_NAME
from dcompress.decode import open_frame
from dcompress.encode import EncodedFrame, encode_checkpoint, encode_tensor
from dcompress.kmeans import cluster
from dcompress.prune import prune, sparsity_mask
from dcompress.recipe import Recipe
from dcompress.recognition import recognise
from dcompress.share import share
from dcompress.stages import Checkpoint, TensorData, Words, word_dtype

Contestant = Callable[[], object]
LOSSLESS = Recipe("lossless")


def race(contestants: dict[str, Contestant], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contestant; they take turns, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def peer(name: str) -> ModuleType | None:
    """Return a peer's module, None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def as_tensor(array: NDArray[Any], dtype: str | None = None) -> TensorData:
    """Return a flat array as tensor data."""
    kind = DTYPE_BY_NAME[dtype or array.dtype.name]
    return TensorData(kind, array.shape, array.reshape(-1).view(word_dtype(kind.word_bytes)))


def sparse_weights(n: int, density: float, n_values: int) -> NDArray[np.float32]:
    """Return Laplace weights, magnitude-pruned and rounded to equally spaced values."""
    weights = np.random.default_rng(0).laplace(size=n).astype(np.float32)
    threshold = np.quantile(np.abs(weights[: 1 << 20]), 1 - density)
    step = 2 * np.abs(weights).max() / n_values
    rounded = (np.floor(weights / step) + 0.5) * step
    return np.where(np.abs(weights) > threshold, rounded, 0).astype(np.float32)


def dense_weights(n: int, n_values: int) -> NDArray[np.float32]:
    """Return weights of few values, the middle ones more frequent."""
    values = np.linspace(-3, 3, n_values).astype(np.float32)
    chances = np.exp(-np.abs(values))
    return np.random.default_rng(0).choice(values, n, p=chances / chances.sum())


def normal_weights(n: int) -> NDArray[np.float32]:
    """Return ordinary dense weights."""
    return (np.random.default_rng(0).standard_normal(n) * 0.02).astype(np.float32)


def cases(n: int) -> dict[str, TensorData]:
    """Return the tensors of the encode and decode tables."""
    bits = normal_weights(n).view(np.uint32)
    return {
        "90 % sparse, 32 values": as_tensor(sparse_weights(n, 0.1, 32)),
        "98 % sparse, 32 values": as_tensor(sparse_weights(n, 0.02, 32)),
        "dense, 32 values": as_tensor(dense_weights(n, 32)),
        "bfloat16, lossless": as_tensor((bits >> np.uint32(16)).astype(np.uint16), "bfloat16"),
        "float32, lossless": as_tensor(normal_weights(n)),
    }


def frame_of(tensor: TensorData, threads: int = 1) -> EncodedFrame:
    """Return the frame of a single tensor, stored exactly."""
    return encode_checkpoint(Checkpoint({"w": tensor}), LOSSLESS, threads=threads)


def bench_decode(n: int, rounds: int) -> list[dict[str, Any]]:
    """Decode from memory: into memory in use, into new memory, with two threads; zstd and ZipNN beside."""
    rows = []
    for case, tensor in cases(n).items():
        frame = frame_of(tensor).to_bytes()
        out: Words = np.empty_like(tensor.words)
        one, two = open_frame(frame), open_frame(frame, threads=2)
        contestants: dict[str, Contestant] = {
            "np.copyto": lambda o=out, t=tensor: np.copyto(o, t.words),
            "np.copy (new memory)": lambda t=tensor: t.words.copy(),
            "dcompress, 1 thread": lambda r=one, o=out: r.read_tensor("w", o),
            "dcompress, 2 threads": lambda r=two, o=out: r.read_tensor("w", o),
            "dcompress, 1 thread (new memory)": lambda r=one: r.read_tensor("w"),
        }
        sizes = {name: len(frame) for name in contestants if name.startswith("dcompress")}
        add_decoders(contestants, sizes, tensor)
        taken = race(contestants, rounds)
        rows += [
            {
                "table": "decode",
                "case": case,
                "who": who,
                "size_percent": 100 * sizes[who] / tensor.n_bytes if who in sizes else None,
                "gb_per_s": tensor.n_bytes / seconds / 1e9,
                "x_copyto": taken["np.copyto"] / seconds,
            }
            for who, seconds in taken.items()
        ]
    return rows


def add_decoders(contestants: dict[str, Contestant], sizes: dict[str, int], tensor: TensorData) -> None:
    """Add the peers that can decode this tensor."""
    raw = tensor.words.tobytes()
    if zstd := peer("zstandard"):
        packed = zstd.ZstdCompressor(level=3).compress(raw)
        contestants["zstd -3"] = lambda: zstd.ZstdDecompressor().decompress(packed)
        sizes["zstd -3"] = len(packed)
    zipnn = peer("zipnn")
    if zipnn and tensor.dtype.name in ("bfloat16", "float32"):
        coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=tensor.dtype.name, threads=1)
        zipped = coder.compress(bytearray(raw))
        contestants["ZipNN, 1 thread"] = lambda: coder.decompress(zipped)
        sizes["ZipNN, 1 thread"] = len(zipped)


def bench_encode(n: int, rounds: int) -> list[dict[str, Any]]:
    """Encode tensors as they are; zstd -3 beside."""
    rows = []
    for case, tensor in cases(n).items():
        contestants: dict[str, Contestant] = {"dcompress, 1 thread": lambda t=tensor: frame_of(t)}
        contestants["dcompress, 2 threads"] = lambda t=tensor: frame_of(t, 2)
        if zstd := peer("zstandard"):
            raw = tensor.words.tobytes()
            contestants["zstd -3"] = lambda z=zstd, r=raw: z.ZstdCompressor(level=3).compress(r)
        taken = race(contestants, max(1, rounds // 3))
        rows += [
            {
                "table": "encode",
                "case": case,
                "who": who,
                "gb_per_s": tensor.n_bytes / seconds / 1e9,
                "x_zstd": taken.get("zstd -3", float("nan")) / seconds,
            }
            for who, seconds in taken.items()
        ]
    return rows


def bench_stages(n: int, rounds: int) -> list[dict[str, Any]]:
    """Time each stage of encoding one layer of ordinary weights: prune 90 %, share 32, choose, code."""
    weights = normal_weights(n)
    mask = sparsity_mask(weights, 0.9)
    pruned = prune(weights, mask)
    float32 = DTYPE_BY_NAME["float32"]
    shared = share(pruned, float32, n_centroids=32)
    tensor = shared.gather()
    contestants: dict[str, Contestant] = {
        "mask": lambda: sparsity_mask(weights, 0.9),
        "prune": lambda: prune(weights, mask),
        "share (k-means, 32)": lambda: share(pruned, float32, n_centroids=32),
        "choose a coder": lambda: choose_shared(shared),
        "choose and code": lambda: encode_tensor(shared),
        "recognise shared values": lambda: recognise(tensor),
        "choose byte planes": lambda: choose_plain(float32, weights.view(np.uint32)),
    }
    taken = race(contestants, max(1, rounds // 3))
    return [
        {"table": "stages", "who": who, "seconds": s, "gb_per_s": weights.nbytes / s / 1e9}
        for who, s in taken.items()
    ]


def bench_kmeans(n: int, rounds: int) -> list[dict[str, Any]]:
    """Cluster to 32 centroids; scikit-learn's KMeans on the raw values of up to 1 M of them, scaled up."""
    del rounds
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    weights = np.random.default_rng(0).laplace(size=n).astype(np.float32)
    part = weights[: min(n, 1_000_000)]
    cluster(part[:10_000], 32)
    start = time.perf_counter()
    cluster(weights, 32)
    ours = time.perf_counter() - start
    ours_part = cluster(part, 32)
    first = np.linspace(part.min(), part.max(), 32, dtype=np.float32)[:, None]
    with threadpool_limits(1):
        start = time.perf_counter()
        fitted = KMeans(32, init=first, n_init=1).fit(part[:, None])
        theirs = (time.perf_counter() - start) * n / part.size
    error = squared_error(part, ours_part) / squared_error(part, fitted.cluster_centers_[:, 0])
    row = {"table": "k-means", "who": "dcompress", "seconds": ours}
    return [row | {"x_sklearn": theirs / ours, "error_to_sklearn": error}]


def squared_error(values: NDArray[Any], centroids: NDArray[Any]) -> float:
    """Return the sum of squared distances to the nearest centroid."""
    ordered = np.sort(centroids.astype(np.float64))
    nearest = ordered[np.searchsorted((ordered[1:] + ordered[:-1]) / 2, values)]
    return float(np.square(values - nearest).sum())


def bench_load(n: int, rounds: int) -> list[dict[str, Any]]:
    """Load a 90 % sparse model of two layers from a warm file; its dense checkpoint by torch beside."""
    torch = peer("torch")
    if torch is None:
        return []
    import dcompress

    layers = np.split(sparse_weights(n // 2 * 2, 0.1, 32), 2)
    state = {f"layer{number}.weight": torch.from_numpy(layer) for number, layer in enumerate(layers)}
    with tempfile.TemporaryDirectory() as folder:
        dense, dcz, safe = (str(Path(folder) / f"m.{suffix}") for suffix in ("pt", "dcz", "safetensors"))
        torch.save(state, dense)
        dcompress.save_file(state, dcz, recipe="lossless")
        contestants: dict[str, Contestant] = {
            "torch.load(weights_only)": lambda: torch.load(dense, weights_only=True),
            "dcompress.load_file, 1 thread": lambda: dcompress.load_file(dcz, threads=1),
            "dcompress.load_file": lambda: dcompress.load_file(dcz),
        }
        if safetensors := peer("safetensors.torch"):
            safetensors.save_file(state, safe)
            contestants["safetensors, cloned"] = lambda: {
                name: tensor.clone() for name, tensor in safetensors.load_file(safe).items()
            }
        taken = race(contestants, rounds)
    return [
        {"table": "load", "who": who, "seconds": s, "x_torch_load": taken["torch.load(weights_only)"] / s}
        for who, s in taken.items()
    ]


def bench_start(n: int, rounds: int) -> list[dict[str, Any]]:
    """Start fresh interpreters: help, info, and a first decode with nothing compiled and nothing cached."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.dcz"
        path.write_bytes(frame_of(as_tensor(sparse_weights(n, 0.1, 32))).to_bytes())
        decode = f"import dcompress.numpy as d; d.load_file({str(path)!r}, threads=1)"
        cold = {"NUMBA_CACHE_DIR": folder}

        def run(*arguments: str, extra: dict[str, str] | None = None) -> Contestant:
            environment = os.environ | (extra or {})
            return lambda: subprocess.run(
                [sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL
            )

        start = time.perf_counter()
        run("-c", decode, extra=cold)()
        first = time.perf_counter() - start
        taken = race(
            {
                'python -c "import numpy"': run("-c", "import numpy"),
                "dcz --help": run("-m", "dcompress", "--help"),
                "dcz info": run("-m", "dcompress", "info", str(path)),
                "decode, compiled before": run("-c", decode, extra=cold),
            },
            max(3, rounds // 2),
        )
    taken["decode, nothing cached"] = first
    base = taken['python -c "import numpy"']
    return [
        {"table": "start", "who": who, "seconds": s, "x_import_numpy": s / base} for who, s in taken.items()
    ]


TABLES: dict[str, Callable[[int, int], list[dict[str, Any]]]] = {
    "decode": bench_decode,
    "encode": bench_encode,
    "stages": bench_stages,
    "k-means": bench_kmeans,
    "load": bench_load,
    "start": bench_start,
}


def show(rows: list[dict[str, Any]]) -> None:
    """Print one table."""
    columns = [key for key in rows[0] if key != "table"]
    cells = [[cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    print(f"\n{rows[0]['table']}")
    for line in [columns, *cells]:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def cell(value: object) -> str:
    """Return a figure with three significant digits, a text as it is."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@click.command(help=__doc__)
@click.option("--weights", default=1 << 24, show_default=True, help="Weights of each tensor.")
@click.option("--rounds", default=9, show_default=True, help="Turns of each contestant.")
@click.option("--only", default=",".join(TABLES), show_default=True, help="Tables, separated by commas.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of tables.")
def main(weights: int, rounds: int, only: str, as_json: bool) -> None:
    """Run the tables that were asked for."""
    unknown = [name for name in only.split(",") if name not in TABLES]
    if unknown:
        raise click.UsageError(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    for name in only.split(","):
        rows = TABLES[name](weights, rounds)
        if as_json:
            for row in rows:
                print(json.dumps(row))
        elif rows:
            show(rows)


if __name__ == "__main__":
    main()
