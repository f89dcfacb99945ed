from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest

from dcompress.constants import DTYPE_BY_NAME, SECTION_RECEIPT, SECTION_TORCH
from dcompress.container.writer import Section
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.errors import ChecksumError, CorruptError, DecodeError, LimitError
from dcompress.inspection import density, read_receipt, read_torch_extra
from dcompress.limits import DecodeLimits
from dcompress.recipe import Recipe, Rule
from dcompress.stages import Checkpoint, TensorData
from tests.checks import frame_of, raises_rule

F32 = DTYPE_BY_NAME["float32"]
RECIPE = Recipe(rules=(Rule("w*", {"bits": 3, "sparsity": 0.5}),))


def weights(shape, seed=0):
    values = np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)
    return TensorData(F32, shape, values.reshape(-1).view(np.uint32))


def packed(content):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (
        packer.compress(content if isinstance(content, bytes) else json.dumps(content).encode())
        + packer.flush()
    )


def with_section(kind, data):
    return open_frame(frame_of({}, {}, [Section(kind, data)]))


# Receipts of the encoder.


def test_receipts_come_back():
    tensors = {"w1": weights((40, 40)), "bias": weights((40,), 1), "w2": weights((60, 50), 2)}
    tensors["tied"] = tensors["w1"]
    checkpoint = Checkpoint(tensors, {"tied": "w1"})
    frame = encode_checkpoint(checkpoint, RECIPE)
    with open_frame(frame.to_bytes()) as reader:
        receipt = read_receipt(reader)
        decoded = reader.read_all()
    assert Recipe.from_dict(receipt.recipe) == RECIPE
    assert sorted(receipt.errors) == ["w1", "w2"]
    for report in frame.reports:
        before = tensors[report.name].words.view(np.float32).astype(np.float64)
        noise = float(np.square(before - decoded[report.name].words.view(np.float32)).sum())
        assert report.noise == pytest.approx(noise)
        if noise:
            want = 10 * math.log10(float(np.square(before).sum()) / noise)
            assert receipt.sqnr(report.name) == pytest.approx(want, abs=1e-3)
            assert report.sqnr == pytest.approx(want)
    assert receipt.sqnr("bias") == math.inf


def test_exact_frames_have_no_receipt():
    checkpoint = Checkpoint({"w": weights((10, 10))})
    with open_frame(encode_checkpoint(checkpoint, Recipe(preset="lossless")).to_bytes()) as reader:
        assert read_receipt(reader) is None
        assert read_torch_extra(reader) == {}


def test_receipts_can_be_left_out():
    checkpoint = Checkpoint({"w": weights((40, 40))})
    assert not encode_checkpoint(checkpoint, RECIPE, receipt=False).sections


def test_torch_extras_come_back():
    extra = {
        "_metadata": {"": {"version": 1}},
        "values": {"step": 7, "ü": [None, 1.5]},
        "value_positions": [0, 3],
    }
    frame = encode_checkpoint(Checkpoint({"w": weights((3,))}, torch_extra=extra))
    with open_frame(frame.to_bytes()) as reader:
        assert read_torch_extra(reader) == extra


@pytest.mark.parametrize("name", ["w", "tied"])
def test_plain_values_never_take_the_place_of_a_tensor(name):
    extra = {"values": {name: 1}, "value_positions": [1]}
    checkpoint = Checkpoint({"w": weights((3,)), "tied": weights((3,))}, {"tied": "w"}, torch_extra=extra)
    with open_frame(encode_checkpoint(checkpoint).to_bytes()) as reader, raises_rule(CorruptError, "SEC-02"):
        read_torch_extra(reader)


def test_density_is_read_without_decoding():
    words = np.zeros(10_000, np.uint32)
    words[::20] = 0x3F800000
    model = {"w": TensorData(F32, (100, 100), words), "e": weights((0,))}
    frame = encode_checkpoint(Checkpoint(model), effort=1)
    with open_frame(frame.to_bytes()) as reader:
        records = reader.directory.tensors
    assert density(records["w"]) == 0.05
    assert density(records["e"]) == 1.0


# Receipts of others.


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"recipe": {}},
        {"errors": {}},
        {"recipe": {}, "errors": []},
        {"recipe": 5, "errors": {}},
        {"recipe": [1], "errors": {}},
        {"recipe": {}, "errors": {"0": [1.0, 2.0]}},
        {"recipe": {}, "errors": {"-1": [1.0, 2.0]}},
        {"recipe": {}, "errors": {"x": [1.0, 2.0]}},
        {"recipe": {}, "errors": {"99999999999999999999": [1.0, 2.0]}},
        {"recipe": {}, "errors": {"0": 1.0}},
        {"recipe": {}, "errors": {"0": [1.0]}},
        {"recipe": {}, "errors": {"0": [None, {}]}},
        {"recipe": {}, "errors": None},
    ],
)
def test_receipts_that_make_no_sense_are_corrupt(content):
    with with_section(SECTION_RECEIPT, packed(content)) as reader, raises_rule(CorruptError, "SEC-02"):
        read_receipt(reader)


NOT_JSON = [
    b"",
    b"\xff\xff",
    packed({"recipe": {}, "errors": {}})[:-1],
    packed(b""),
    packed(b"{"),
    packed(b"\xff\xfe"),
    packed(b"[" * 100_000),
    packed([1]),
    packed(b"5"),
    packed(b'"text"'),
    packed(b"null"),
    packed(b"1" * 10_000),
]


@pytest.mark.parametrize("place", range(len(NOT_JSON)))
@pytest.mark.parametrize("kind", [SECTION_RECEIPT, SECTION_TORCH])
def test_sections_that_are_no_json_object_are_corrupt(place, kind):
    read = read_receipt if kind == SECTION_RECEIPT else read_torch_extra
    with with_section(kind, NOT_JSON[place]) as reader, raises_rule(CorruptError, "SEC-02"):
        read(reader)


def test_numbers_too_large_for_a_float_are_corrupt():
    content = b'{"recipe": {}, "errors": {"0": [' + b"9" * 400 + b", 1]}}"
    stored = {"w": encode_checkpoint(Checkpoint({"w": weights((4,))})).reports[0].coded}
    frame = frame_of(stored, {}, [Section(SECTION_RECEIPT, packed(content))])
    with open_frame(frame) as reader, raises_rule(CorruptError, "SEC-02"):
        read_receipt(reader)


def test_bytes_after_the_json_are_corrupt():
    data = packed({"recipe": {}, "errors": {}}) + b"more"
    with with_section(SECTION_RECEIPT, data) as reader, raises_rule(CorruptError, "SEC-02"):
        read_receipt(reader)


def test_a_deflate_bomb_is_stopped_at_the_limit_of_sections():
    bomb = packed(b'{"recipe": {}, "errors": {}, "x": "' + b" " * 2_000_000 + b'"}')
    assert len(bomb) < 5000
    frame = frame_of({}, {}, [Section(SECTION_RECEIPT, bomb)])
    with open_frame(frame, limits=DecodeLimits(max_section_bytes=100_000)) as reader:
        with pytest.raises(DecodeError) as caught:
            read_receipt(reader)
        assert type(caught.value) is LimitError
        assert caught.value.rule == "LIM-06"


def test_a_damaged_section_is_found():
    frame = frame_of({}, {}, [Section(SECTION_TORCH, packed({"values": {}}))])
    with open_frame(frame[:-1] + bytes([frame[-1] ^ 1])) as reader, raises_rule(ChecksumError, "SEC-01"):
        read_torch_extra(reader)
