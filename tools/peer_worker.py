"""Run one peer for `peers.py`; needs NumPy and that peer, not dcompress. Not meant to be called by hand.

    python tools/peer_worker.py FOLDER

FOLDER holds ``job.json`` (what to do) and ``arrays.npz`` (on what, by number: "0", "1", ...). The answer is
``result.json``, with arrays beside it if the job asks for them. What a peer prints is nobody's answer.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Job = dict[str, Any]

PACKAGES = {"nncodec": "nncodec", "zstd": "zstandard", "brotli": "brotli", "constriction": "constriction"}
MOST_QPS = 12  # runs of nncodec on the way to one SQNR, before the search gives up
DECIBELS_PER_QP = 20 * math.log10(2) / 4  # four steps of qp halve the step size


@dataclass(frozen=True)
class Codec:
    """How a peer codes the label arrays of one set.

    Attributes
    ----------
    encode : callable
        Returns what is stored.
    decode : callable
        From what is stored to the arrays, int32 or narrower, offset by `lowest`.
    size : callable
        Bytes of what is stored, tables counted.
    lowest : sequence of int
        What to add to each decoded array; not timed.
    """

    encode: Callable[[], Any]
    decode: Callable[[Any], list[Array]]
    size: Callable[[Any], int]
    lowest: Sequence[int]


def median_seconds(run: Callable[[], object], rounds: int, budget: float) -> float:
    """Return the median seconds of a call: ``rounds`` times, fewer once they took ``budget`` seconds."""
    times: list[float] = []
    while not times or (len(times) < rounds and sum(times) < budget):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def decibels(before: Sequence[Array], after: Sequence[Array]) -> float:
    """Return the SQNR of the arrays with at least two dimensions above 1, all of them together."""
    signal = noise = 0.0
    for old, new in zip(before, after, strict=True):
        if sum(n > 1 for n in old.shape) >= 2:
            wide = old.astype(np.float64)
            signal += float(np.square(wide).sum())
            noise += float(np.square(wide - new.reshape(old.shape)).sum())
    return 10 * math.log10(signal / noise) if noise else math.inf


def load_nncodec() -> Any:
    """Return the module ``nncodec.nnc``.

    NNCodec imports torchvision, whose compiled part often does not fit the installed torch. It only has to
    be importable, so two operators are declared in its place where that part cannot be loaded.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        torch = importlib.import_module("torch")
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        load_nncodec.keep = operators  # type: ignore[attr-defined]  # they go when the library object goes
    return importlib.import_module("nncodec.nnc")


class Nncodec:
    """NNCodec on a dict of arrays.

    Parameters
    ----------
    names : list of str
        Their names. NNCodec takes ``_G`` and ``_H`` for marks of its own, so they are written small.
    arrays : list of ndarray
        int32 labels, coded exactly, or float32 weights.
    """

    def __init__(self, names: list[str], arrays: list[Array]) -> None:
        self._nnc = load_nncodec()
        self._names = [name.replace("_G", "_g").replace("_H", "_h") for name in names]
        self._state = dict(zip(self._names, arrays, strict=True))

    def compress(self, qp: int, **settings: Any) -> bytearray:
        """Return the bit stream: trellis quantisation, biases and norms nearly exact, empty rows skipped."""
        settings = {"use_dq": True, "lambda_scale": 1, "nonweight_qp": -75, "row_skipping": True} | settings
        stream = self._nnc.compress(
            self._state, qp=qp, return_bitstream=True, bitstream_path=None, verbose=False, **settings
        )
        return bytearray(stream)

    def decompress(self, stream: bytearray) -> list[Array]:
        """Return the arrays of a bit stream."""
        state = self._nnc.decompress(bytearray(stream), verbose=False)
        return [np.asarray(state[name]) for name in self._names]


def nncodec_labels(names: list[str], arrays: list[Array]) -> Codec:
    """Return NNCodec for integer labels: DeepCABAC, nothing quantised."""
    coder = Nncodec(names, arrays)
    return Codec(lambda: coder.compress(qp=-22), coder.decompress, len, [0] * len(arrays))


def byte_codec(
    arrays: list[Array], pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]
) -> Codec:
    """Return a codec for the labels as bytes, one stream a tensor, two bytes a label above 256 values."""
    lowest = [int(array.min(initial=0)) for array in arrays]
    narrow = [
        (array.reshape(-1) - low).astype(np.uint8 if array.max(initial=0) - low < 256 else np.uint16)
        for array, low in zip(arrays, lowest, strict=True)
    ]

    def decode(streams: list[bytes]) -> list[Array]:
        return [
            np.frombuffer(unpack(stream), part.dtype) for stream, part in zip(streams, narrow, strict=True)
        ]

    return Codec(
        lambda: [pack(part.tobytes()) for part in narrow],
        decode,
        lambda streams: sum(len(stream) for stream in streams),
        lowest,
    )


def zstd(level: int, arrays: list[Array]) -> Codec:
    """Return zstd of the label bytes."""
    zstandard = importlib.import_module("zstandard")
    return byte_codec(
        arrays, zstandard.ZstdCompressor(level=level).compress, zstandard.ZstdDecompressor().decompress
    )


def brotli(arrays: list[Array]) -> Codec:
    """Return brotli -11 of the label bytes."""
    module = importlib.import_module("brotli")
    return byte_codec(arrays, module.compress, module.decompress)


def constriction(arrays: list[Array]) -> Codec:
    """Return constriction's ANS coder with the true frequencies of each tensor.

    Two bytes for each possible label and six a tensor stand for the tables, which are not written out.
    """
    stream = importlib.import_module("constriction").stream
    lowest = [int(array.min(initial=0)) for array in arrays]
    labels = [(array.reshape(-1) - low).astype(np.int32) for array, low in zip(arrays, lowest, strict=True)]
    counts = [np.bincount(part, minlength=2).astype(np.float32) for part in labels]

    def model(frequencies: Array) -> Any:
        return stream.model.Categorical(frequencies / frequencies.sum(), perfect=False, lazy=False)

    def encode() -> list[Array]:
        packed = []
        for part, frequencies in zip(labels, counts, strict=True):
            coder = stream.stack.AnsCoder()
            coder.encode_reverse(part, model(frequencies))
            packed.append(coder.get_compressed())
        return packed

    def decode(packed: list[Array]) -> list[Array]:
        return [
            stream.stack.AnsCoder(words).decode(model(frequencies), part.size)
            for words, frequencies, part in zip(packed, counts, labels, strict=True)
        ]

    tables = sum(6 + 2 * frequencies.size for frequencies in counts)
    return Codec(encode, decode, lambda packed: tables + sum(words.nbytes for words in packed), lowest)


def make_codec(peer: str, names: list[str], arrays: list[Array]) -> Codec:
    """Return the codec of a peer: "nncodec", "zstd -19", "zstd -3", "brotli -11" or "constriction ANS"."""
    package, _, setting = peer.partition(" ")
    if package == "nncodec":
        return nncodec_labels(names, arrays)
    if package == "zstd":
        return zstd(-int(setting), arrays)
    return brotli(arrays) if package == "brotli" else constriction(arrays)


def code_labels(job: Job, arrays: list[Array]) -> Job:
    """Return bytes, seconds and whether the labels came back."""
    codec = make_codec(job["peer"], job["names"], arrays)
    kept: list[Any] = []

    def encode() -> None:
        kept[:] = [codec.encode()]

    encode_seconds = median_seconds(encode, job["rounds"], job["seconds"])
    decoded = codec.decode(kept[0])
    exact = all(
        np.array_equal(new.reshape(old.shape).astype(np.int64) + low, old)
        for old, new, low in zip(arrays, decoded, codec.lowest, strict=True)
    )
    del decoded
    return {
        "bytes": codec.size(kept[0]),
        "encode_seconds": encode_seconds,
        "decode_seconds": median_seconds(lambda: codec.decode(kept[0]), job["rounds"], job["seconds"]),
        "exact": exact,
    }


def code_weights(job: Job, arrays: list[Array], folder: Path) -> Job:
    """Return the figures of NNCodec at the asked qps, and at the two qps around each asked SQNR."""
    coder = Nncodec(job["names"], arrays)
    points: dict[int, Job] = {}

    def at(qp: int) -> float:
        if qp not in points:
            start = time.perf_counter()
            stream = coder.compress(qp, lambda_scale=job["lambda_scale"])
            middle = time.perf_counter()
            decoded = coder.decompress(stream)
            end = time.perf_counter()
            points[qp] = {
                "qp": qp,
                "bytes": len(stream),
                "sqnr": decibels(arrays, decoded),
                "encode_seconds": middle - start,
                "decode_seconds": end - middle,
            }
            if job.get("keep"):
                numbered = {str(number): array for number, array in enumerate(decoded)}
                np.savez(folder / f"decoded{qp}.npz", **numbered)
        return float(points[qp]["sqnr"])

    for qp in job.get("qps", []):
        at(qp)
    for target in job.get("targets", []):
        surround(at, target)
    return {"points": [points[qp] for qp in sorted(points, reverse=True)]}


def surround(at: Callable[[int], float], target: float, first: int = -20) -> tuple[int, int]:
    """Return the neighbouring qps, coarser and finer, between whose SQNRs a target lies.

    Parameters
    ----------
    at : callable
        SQNR at a qp, in dB; it falls as qp grows, by about 1.5 dB a step.
    target : float
        The SQNR looked for.
    first : int
        Where to start.

    Raises
    ------
    ValueError
        They are not found within `MOST_QPS` runs.
    """
    qp = first
    for _ in range(MOST_QPS):
        found = at(qp)
        if found >= target and at(qp + 1) < target:
            return qp + 1, qp
        jump = round((found - target) / DECIBELS_PER_QP)
        qp += jump or (1 if found >= target else -1)
    raise ValueError(f"no qp gives {target:g} dB")


def versions() -> Job:
    """Return the version of each peer that can be imported, and why the others cannot."""
    found: Job = {"versions": {}, "reasons": {}}
    for peer, package in PACKAGES.items():
        reason = _why_not(package)
        if reason is None:
            found["versions"][peer] = metadata.version(package)
        else:
            found["reasons"][peer] = reason
    return found


def _why_not(package: str) -> str | None:
    """Return why a package cannot be imported, None if it can."""
    try:
        if package == "nncodec":
            load_nncodec()
        else:
            importlib.import_module(package)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a broken installation raises
        return str(error) or type(error).__name__
    return None


def main(folder: Path) -> None:
    """Do the job in a folder."""
    job = json.loads((folder / "job.json").read_text())
    if job["task"] == "versions":
        result = versions()
    else:
        with np.load(folder / "arrays.npz") as stored:
            arrays = [stored[str(number)] for number in range(len(job["names"]))]
        result = code_labels(job, arrays) if job["task"] == "labels" else code_weights(job, arrays, folder)
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
