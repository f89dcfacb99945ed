"""The `labels` tables of `peers.py`: exact coding of the same labels, by us and by the peers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from peer_client import PeerError, Peers, Row, Workplace, print_table
from peer_sets import LabelSet
from peer_worker import median_seconds

from dcompress.decode import open_frame
from dcompress.encode import EncodedFrame, encode_checkpoint
from dcompress.recipe import Recipe

LOSSLESS = Recipe("lossless")
BASE = "nncodec + codebooks"
CODERS = ("nncodec", "zstd -19", "zstd -3", "brotli -11", "constriction ANS")
BROTLI_MOST = 2_000_000  # labels; brotli -11 takes minutes beyond

COLUMNS = {
    "who": "coder s",
    "bytes": "bytes ,",
    "size_ratio": "/ nncodec .4f",
    "encode_mb_s": "encode MB/s .3g",
    "encode_x": "x nncodec .3g",
    "decode_mb_s": "decode MB/s .4g",
    "decode_x": "x nncodec .3g",
    "decode_copies": "x copy time .3g",
}
SUMMED = {
    "size_ratio": "size .4f",
    "encode_x": "encode .3g",
    "decode_x": "decode .3g",
    "decode_copies": "copies .3g",
}


@dataclass(frozen=True)
class Effort:
    """How much is measured, and how often.

    Attributes
    ----------
    efforts : sequence of int
        Efforts of ours.
    threads : sequence of int
        Threads that ours encodes and decodes with.
    rounds : int
        Repetitions of each measurement.
    seconds : float
        Time after which a measurement is not repeated.
    """

    efforts: Sequence[int] = (6, 9)
    threads: Sequence[int] = (1,)
    rounds: int = 9
    seconds: float = 3.0


def measure_set(one: LabelSet, peers: Peers, installed: Collection[str], effort: Effort) -> list[Row]:
    """Return the rows of one set: the entropy, the peers that are installed, and ours."""
    rows: list[Row] = [{"who": "order-0 entropy, labels alone", "bytes": round(one.entropy_bytes)}]
    with peers.share(one.labels) as workplace:
        for coder in CODERS:
            package = coder.split()[0]
            if package not in installed or (package == "brotli" and one.n_weights > BROTLI_MOST):
                continue
            rows += _peer_rows(coder, one, workplace, effort)
    for level in effort.efforts:
        for threads in effort.threads:
            rows.append(_our_row(one, level, threads, effort))
    return _add_ratios(one, rows, _copy_seconds(one, effort))


def _peer_rows(coder: str, one: LabelSet, workplace: Workplace, effort: Effort) -> list[Row]:
    """Return a peer's row; two for NNCodec: its stream alone, and with the codebooks it does not hold."""
    # NNCodec takes seconds for what the others do in milliseconds: twice is enough.
    rounds = 2 if coder == "nncodec" else effort.rounds
    try:
        result = workplace.ask(task="labels", peer=coder, rounds=rounds, seconds=effort.seconds)
    except PeerError as error:
        return [{"who": f"{coder} failed: {error}"}]
    if not result.pop("exact"):
        return [{"who": f"{coder}: labels differ"}]
    row: Row = {"who": coder} | result
    if coder != "nncodec":
        row["bytes"] += one.codebook_bytes
        return [row]
    return [row | {"who": BASE, "bytes": row["bytes"] + one.codebook_bytes}, row]


def _our_row(one: LabelSet, level: int, threads: int, effort: Effort) -> Row:
    """Return the row of ours at one effort: the whole file, from weights to weights."""
    frames: list[EncodedFrame] = []

    def encode() -> None:
        frames[:] = [encode_checkpoint(one.checkpoint, LOSSLESS, effort=level, threads=threads)]

    # The first encoding compiles; one that takes long for all that counts, rather than another.
    encode_seconds = median_seconds(encode, 1, 0)
    if encode_seconds < 5 * effort.seconds:
        encode_seconds = median_seconds(encode, effort.rounds, effort.seconds)
    frame = frames[0].to_bytes()
    # The first decoding compiles, and shows that the weights come back.
    decoded = open_frame(frame, threads=threads).read_all()
    exact = all(
        np.array_equal(decoded[name].words, tensor.words) for name, tensor in one.checkpoint.tensors.items()
    )
    del decoded
    if not exact:
        raise AssertionError(f"{one.title}: a .dcz file does not hold what went into it")
    return {
        "who": f"dcompress, effort {level}, {threads} thread{'s' * (threads > 1)}",
        "effort": level,
        "threads": threads,
        "bytes": len(frame),
        "encode_seconds": encode_seconds,
        "decode_seconds": median_seconds(
            lambda: open_frame(frame, threads=threads).read_all(), effort.rounds, effort.seconds
        ),
    }


def _copy_seconds(one: LabelSet, effort: Effort) -> float:
    """Return how long np.copyto takes for the decoded weights, into memory in use."""
    sources = [tensor.words for tensor in one.checkpoint.tensors.values()]
    targets = [words.copy() for words in sources]

    def copy() -> None:
        for target, source in zip(targets, sources, strict=True):
            np.copyto(target, source)

    return median_seconds(copy, 3 * effort.rounds, effort.seconds)


def _add_ratios(one: LabelSet, rows: list[Row], copy_seconds: float) -> list[Row]:
    """Return rows with MB/s of float32 weights, and ratios to NNCodec with codebooks and to a copy."""
    base = next((row for row in rows if row["who"] == BASE), None)
    full = []
    for row in rows:
        more: Row = {"set": one.title}
        if base and "bytes" in row:
            more["size_ratio"] = row["bytes"] / base["bytes"]
        for step in ("encode", "decode"):
            seconds = row.get(f"{step}_seconds")
            if seconds:
                more[f"{step}_mb_s"] = 4 * one.n_weights / seconds / 1e6
                if base:
                    more[f"{step}_x"] = base[f"{step}_seconds"] / seconds
        if "decode_seconds" in row:
            more["decode_copies"] = row["decode_seconds"] / copy_seconds
        full.append(more | row)
    return full


def print_set(one: LabelSet, rows: Sequence[Row]) -> None:
    """Print the table of one set."""
    title = (
        f"{one.title}: {one.n_weights:,} weights in {len(one.tensors)} tensors, {one.density:.1%} kept, "
        f"{one.codebook_bytes:,} bytes of codebooks, {one.sqnr:.1f} dB"
    )
    print_table(title, rows, COLUMNS)


def print_summary(rows: Sequence[Row]) -> None:
    """Print ours of every set, a column for each effort, and the geometric mean of each column."""
    ours = [row for row in rows if row.get("threads") == 1]
    efforts = sorted({row["effort"] for row in ours})
    columns = {"set": "set s"}
    for key, heading in SUMMED.items():
        if any(key in row for row in ours):
            name, _, how = heading.partition(" ")
            columns |= {f"{key} {effort}": f"{name} {effort} {how}" for effort in efforts}
    by_set: dict[str, Row] = {}
    for row in ours:
        line = by_set.setdefault(row["set"], {"set": row["set"]})
        line |= {f"{key} {row['effort']}": row[key] for key in SUMMED if key in row}
    means: Row = {"set": "geometric mean"}
    for column in list(columns)[1:]:
        means[column] = math.exp(np.mean([math.log(line[column]) for line in by_set.values()]))
    print_table(
        "Ours by effort, one thread: size, encode and decode speed as multiples of nncodec with codebooks; "
        "decode time as a multiple of np.copyto",
        [*by_set.values(), means],
        columns,
    )
