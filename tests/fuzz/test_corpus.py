"""The corpus of the fuzzers, replayed: every decoder says of every frame what its file is named after.

``ok-3-long-1-2.dcz`` is ``long_frame(seed=2, kind=1)``: coder 3, and enough symbols for several lanes.
Frames in ``several_rules`` break all rules in their names; decoders may name any of those (spec section 3).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dcompress.constants import DTYPES
from dcompress.cursor import Cursor
from tests.fuzz.frames import (
    DataDice,
    Dice,
    examine,
    legal_frame,
    mutated,
    sealed,
    taken_apart,
    verdict,
    written,
)
from tests.fuzz.fuzz_differential import Driver, build_driver, same
from tests.fuzz.lanes import change_lanes
from tests.fuzz.pseudo_code import verdict_of_spec

CORPUS = Path(__file__).parent / "corpus"
FRAMES = {path.stem: path.read_bytes() for path in sorted(CORPUS.glob("*.dcz"))}
SEVERAL = sorted((CORPUS.parent / "several_rules").glob("*.dcz"))


def expected(name: str) -> str:
    """Return what a file is named after: ``ok`` or a rule."""
    return "ok" if name.startswith("ok-") else name


def test_the_corpus_is_there_and_small():
    assert len(FRAMES) > 100
    assert sum(map(len, FRAMES.values())) < 200_000
    rules = {name for name in FRAMES if not name.startswith("ok-")}
    assert len(rules) > 55
    accepted = [name.split("-")[1] for name in FRAMES if name.startswith("ok-")]
    assert {coder for coders in accepted for coder in coders} == set("0123456")


def test_each_frame_is_what_it_is_named_after(kernel):
    for name, data in FRAMES.items():
        assert verdict(data).split()[0] == expected(name), name


@pytest.mark.parametrize("path", SEVERAL, ids=lambda path: path.stem)
def test_one_of_several_rules_is_named(kernel, path):
    """The decoder in C names the same with all amounts of memory: `test_c_decoder.py` replays them."""
    assert verdict(path.read_bytes()) in path.stem.rsplit("-", 1)[0].split("_")


def test_nothing_but_decode_errors_comes_out(kernel):
    for data in FRAMES.values():
        examine(data)


def test_the_pseudo_code_of_the_spec_says_the_same(reference_kernels):
    for name, data in FRAMES.items():
        if len(data) < 400:
            assert verdict_of_spec(data) == verdict(data), name


def test_the_c_decoder_says_the_same(tmp_path, reference_kernels):
    """Its own tests run it under sanitizers."""
    path = build_driver(tmp_path, "-O1")
    if path is None:
        pytest.skip("needs cc")
    driver = Driver(path)
    answers = {name: driver.verdict(data) for name, data in FRAMES.items()}
    driver.close()
    assert {n: a for n, a in answers.items() if a.split()[0] != expected(n)} == {}
    assert all(same(answer, verdict(FRAMES[name])) for name, answer in answers.items())


@pytest.mark.parametrize("seed", range(3))
def test_both_kernels_agree_on_changed_frames(monkeypatch, seed):
    """A few hundred executions of the differential fuzzer; `tools/fuzz.sh` runs millions."""
    dice = Dice(seed)
    frames = [legal_frame(1000 * seed + number) for number in range(25)]
    n_accepted = 0
    for _ in range(100):
        monkeypatch.setenv("DCOMPRESS_KERNELS", "numba")
        frame = mutated(dice, dice.pick(frames))
        data = sealed(frame)
        first = verdict(data)
        monkeypatch.setenv("DCOMPRESS_KERNELS", "numpy")
        assert same(first, verdict(data)), data.hex()
        n_accepted += first.startswith("ok")
    assert n_accepted > 5


# What the fuzzers are made of.


def test_frames_come_back_from_their_parts(reference_kernels):
    for name, data in FRAMES.items():
        if name.startswith("ok-"):
            assert verdict(written(taken_apart(data))) == verdict(data)


def test_choices_are_made_by_the_data():
    dice = DataDice(b"\x05\x01\x02abc")
    assert (dice.below(3), dice.below(1000)) == (2, 513)
    assert (dice.blob(2), dice.blob(3), dice.below(9)) == (b"ab", b"c\0\0", 0)
    first = written(mutated(DataDice(bytes(range(40))), legal_frame(3)))
    assert first == written(mutated(DataDice(bytes(range(40))), legal_frame(3)))


@pytest.mark.parametrize("name", [name for name in FRAMES if "-long-" in name])
def test_lanes_are_changed_in_all_ways(name):
    """Bytes left over, and lanes that took bytes of others: all sizes fit, and every one is refused."""
    frame = taken_apart(FRAMES[name])
    entry = frame.entries[0]
    whole = Cursor(entry.chunks[0])
    whole.take(whole.varint(1 << 20))
    head, body = entry.chunks[0][: -whole.remaining], bytes(whole.take(whole.remaining))
    sizes, verdicts = set(), set()
    for seed in range(40):
        n_words = math.prod(entry.shape) * DTYPES[entry.dtype - 1].words_per_element
        changed = change_lanes(Dice(seed), entry.coder, n_words, body)
        assert changed is not None
        sizes.add(len(changed) - len(body))
        data = written(replace(frame, entries=[replace(entry, chunks=(head + changed,))]))
        verdicts |= {verdict(data).split()[0]} if changed != body else set()
    assert min(sizes) < 0 < max(sizes)
    assert 0 in sizes
    streams = {"STR-01", "STR-02", "STR-03", "RUN-01", "DIG-01"}
    assert verdicts <= (streams if entry.coder != 6 else {"CTX-04", "CTX-05", "CTX-06", "CTX-07", "DIG-01"})
    assert verdicts & {"STR-02", "CTX-05"}


def test_a_decoder_that_errs_is_found(monkeypatch, reference_kernels):
    """A kernel with a bug gives another fingerprint, or a digest that does not match."""
    from dcompress.kernels import reference

    data = FRAMES["ok-4"]
    right = verdict(data)
    scatter = reference._scatter

    def wrong(position, runs, labels, lookup, out):
        end = scatter(position, runs, labels, lookup, out)
        out[:1] ^= 1
        return end

    monkeypatch.setattr(reference, "_scatter", wrong)
    assert not same(right, verdict(data))


@pytest.mark.nightly
def test_no_kernel_leaves_its_arrays(tmp_path):
    """The corpus, and some changed frames, with bounds checks compiled in: that takes a minute."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.fuzz.frames import Dice, examine, legal_frame, mutated, sealed, verdict\n"
        "from tests.fuzz.test_corpus import FRAMES\n"
        "for data in FRAMES.values():\n"
        "    examine(data)\n"
        "dice, frames = Dice(5), [legal_frame(number) for number in range(60)]\n"
        "for _ in range(1500):\n"
        "    examine(sealed(mutated(dice, dice.pick(frames))))\n"
        "print('ok')\n"
    )
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "DCOMPRESS_KERNELS": "numba"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ok\n", done.stderr[-3000:]
