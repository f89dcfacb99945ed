"""The file of statistics: round trips, damage, other files, other models."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from dcompress import Calibration, EncodeError, calibrate
from dcompress.calibration.moments import Moments, block_bounds, pack_triangles, unpack_triangles
from dcompress.constants import DTYPE_BY_NAME
from tests.calibration.test_calibrate import assert_same, some_batches


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(6, 4)
        self.mix = nn.Conv1d(4, 4, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose1d(4, 6, 2)
        self.head = nn.Linear(6, 5)
        self.tail = nn.Linear(5, 6, bias=False)
        self.tail.weight = nn.Parameter(self.head.weight.detach().T.contiguous())
        self.again = nn.Linear(6, 5)
        self.again.weight = self.head.weight
        self.never = nn.Linear(2, 2)

    def forward(self, places):
        seen = self.up(self.mix(self.rows(places).mT)).mT
        return self.again(self.tail(self.head(seen)))


@pytest.fixture(scope="module")
def calibration():
    torch.manual_seed(1)
    batches = [torch.randint(6, (2, 7), generator=torch.Generator().manual_seed(n)) for n in range(5)]
    with pytest.warns(UserWarning, match="never.weight"):
        return calibrate(
            Model(), batches, max_columns=4, loss=lambda model, batch: model(batch).square().sum()
        )


@pytest.fixture(scope="module")
def crossed(calibration):
    """Return these statistics as if what comes before each layer were compressed."""
    generator = np.random.default_rng(5)

    def like(blocks):
        return tuple(generator.normal(size=block.shape).astype(np.float32) for block in blocks)

    moments = {
        name: dataclasses.replace(one, cross=like(one.second), holdout_cross=like(one.holdout))
        for name, one in calibration.moments.items()
    }
    return dataclasses.replace(calibration, moments=moments)


@pytest.fixture
def path(tmp_path, calibration):
    calibration.save(tmp_path / "stats.safetensors")
    return tmp_path / "stats.safetensors"


def test_round_trip(path, calibration):
    found = Calibration.load(path)
    assert_same(found, calibration)
    assert found.n_parameters == calibration.n_parameters == sum(p.numel() for p in Model().parameters())
    assert (found.n_batches, found.n_holdout_batches) == (5, 1)
    assert found.skipped == {"never.weight": "its layer was never called"}
    assert str(found) == str(calibration)
    found.save(path.with_name("again"))
    assert path.with_name("again").read_bytes() == path.read_bytes()


def test_any_reader_of_safetensors_can_open_it(path, calibration):
    arrays = safetensors.numpy.load_file(path)
    block = calibration["mix.weight"].second[0]
    np.testing.assert_array_equal(arrays["mix.weight/second.0"], pack_triangles(block))


def test_it_loads_without_torch(path):
    code = (
        "import sys; sys.modules['torch'] = None; import dcompress;"
        f"print(len(dcompress.Calibration.load({str(path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 5


def test_an_old_file_is_kept_unless_it_may_be_replaced(path, calibration):
    old = path.read_bytes()
    with pytest.raises(FileExistsError):
        calibration.save(path, overwrite=False)
    assert path.read_bytes() == old
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_cross_moments_come_back(crossed, tmp_path):
    path = tmp_path / "stats"
    crossed.save(path)
    found = Calibration.load(path)
    assert_same(found, crossed)
    assert any(one.cross for one in found.values())
    for name, one in found.items():
        for kind in ("cross", "holdout_cross"):
            for block, wanted in zip(getattr(one, kind), getattr(crossed[name], kind), strict=True):
                np.testing.assert_array_equal(block, wanted)  # whole squares: they are not symmetric
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    rewrite(path, setting("moments", "mix.weight", "cross", to=False))
    with pytest.raises(EncodeError, match="damaged: tensors that nobody describes"):
        Calibration.load(path)
    crossed.save(path)
    rewrite(path, nothing, {"mix.weight/holdout_cross.1": None})
    with pytest.raises(EncodeError, match=r"damaged: .*holdout_cross\.1"):
        Calibration.load(path)


def test_files_from_before_there_were_cross_moments(path, calibration):
    rewrite(path, lambda content: [one.pop("cross") for one in content["moments"].values()])
    assert_same(Calibration.load(path), calibration)
    rewrite(path, setting("moments", "mix.weight", "cross", to=True))
    with pytest.raises(EncodeError, match=r"damaged: .*mix\.weight/cross"):
        Calibration.load(path)


# Damage.


def test_no_flipped_bit_and_no_missing_byte_is_taken_for_statistics(path):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 23), *range(header, len(whole), 41), len(whole) - 1]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        if place < header:  # a space between keys, or the order of keys, may change without harm
            try:
                Calibration.load(path)
            except EncodeError:
                continue
            pytest.fail(f"byte {place}")
        with pytest.raises(EncodeError, match="damaged"):
            Calibration.load(path)
    for length in (0, 7, 8, header - 1, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(EncodeError, match=r"cut short|too few|damaged"):
            Calibration.load(path)


def rewrite(path, change, tensors=None, **metadata):
    """Write the file anew with another description, its checksum right."""
    with safetensors.safe_open(path, "numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        old = file.metadata()
    content = json.loads(old["calibration"])
    change(content)
    text = json.dumps(content)
    arrays |= tensors or {}
    new = old | {"calibration": text, "crc32": str(zlib.crc32(text.encode()))} | metadata
    safetensors.numpy.save_file({key: array for key, array in arrays.items() if array is not None}, path, new)


def nothing(_content):
    pass


def setting(*keys, to):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def test_rewriting_without_a_change_does_no_harm(path, calibration):
    rewrite(path, nothing)
    assert_same(Calibration.load(path), calibration)


@pytest.mark.parametrize(
    "change",
    [
        setting("moments", to=7),
        setting("moments", "mix.weight", to=[]),
        setting("moments", "mix.weight", "shape", to=[4, 2, 4]),
        setting("moments", "mix.weight", "shape", to=[4, -2, 3]),
        setting("moments", "mix.weight", "shape", to="4"),
        setting("moments", "mix.weight", "groups", to=4),
        setting("moments", "mix.weight", "groups", to=True),
        setting("moments", "mix.weight", "groups", to=0),
        setting("moments", "mix.weight", "layout", to="columns"),
        setting("moments", "up.weight", "layout", to="rows"),
        setting("moments", "mix.weight", "kinds", to=[]),
        setting("moments", "mix.weight", "blocks", to=[3]),
        setting("moments", "mix.weight", "holdout", to=False),
        setting("moments", "mix.weight", "crc32", to={}),
        setting("moments", "mix.weight", "row_weights", to=True),
        setting("moments", "mix.weight", "influence", to=False),
        setting("shapes", "mix.weight", to=None),
        setting("n_batches", to=-1),
        setting("n_parameters", to=1.5),
        setting("ties", to=[]),
        setting("notes", to=None),
        lambda content: content.pop("skipped"),
        lambda content: content["moments"].pop("mix.weight"),
        lambda content: content["moments"]["mix.weight"].update(more=1),
    ],
)
def test_a_description_that_makes_no_sense(path, change):
    rewrite(path, change)
    with pytest.raises(EncodeError, match="damaged"):
        Calibration.load(path)


def test_tensors_that_do_not_fit_the_description(path):
    whole = path.read_bytes()
    key = "mix.weight/total"
    for array in (None, np.zeros((2, 7), np.float32), np.zeros((2, 6)), np.zeros((2, 6), np.float32)):
        path.write_bytes(whole)
        rewrite(path, nothing, {key: array})
        with pytest.raises(EncodeError, match=r"damaged.*mix\.weight/total"):
            Calibration.load(path)
    bad = np.full((2, 6), np.nan, np.float32)
    path.write_bytes(whole)
    rewrite(
        path, setting("moments", "mix.weight", "crc32", "total", to=zlib.crc32(bad.tobytes())), {key: bad}
    )
    with pytest.raises(EncodeError, match="NaN or infinite"):
        Calibration.load(path)
    path.write_bytes(whole)
    negative = np.array([-1, 4], np.int64)
    crc = setting("moments", "mix.weight", "crc32", "n_vectors", to=zlib.crc32(negative.tobytes()))
    rewrite(path, crc, {"mix.weight/n_vectors": negative})
    with pytest.raises(EncodeError, match="non-negative"):
        Calibration.load(path)


def test_other_files(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "none")
    rewrite(path, nothing, version="2")
    with pytest.raises(EncodeError, match="version '2'; this dcompress reads version 1"):
        Calibration.load(path)
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(EncodeError, match="no calibration statistics"):
        Calibration.load(path)
    path.write_bytes(b"\x89DCZ\r\n\x1a\n" + bytes(100))
    with pytest.raises(EncodeError, match="header"):
        Calibration.load(path)


# Other models.


def specs_of(shapes):
    return {name: (DTYPE_BY_NAME["float32"], shape) for name, shape in shapes.items()}


def test_check(calibration):
    state = {name: tuple(value.shape) for name, value in Model().state_dict().items()}
    calibration.check(specs_of(state))
    calibration.check(specs_of(state | {"more": (3, 3)}))
    with pytest.raises(EncodeError, match=r"another model: mix\.weight is 4x2x5, not 4x2x3$"):
        calibration.check(specs_of(state | {"mix.weight": (4, 2, 5)}))
    with pytest.raises(EncodeError, match=r"never\.weight is 9x9, not 2x2"):
        calibration.check(specs_of(state | {"never.weight": (9, 9)}))
    with pytest.raises(EncodeError, match=r"rows\.weight 6x4 is not there; .* and 2 more$"):
        calibration.check(specs_of({}))
    with pytest.raises(EncodeError, match=r"names begin with 'module\.': take that off"):
        calibration.check(specs_of({f"module.{name}": shape for name, shape in state.items()}))


# Pieces.


@pytest.mark.parametrize("size", [1, 2, 5])
def test_triangles(size):
    generator = np.random.default_rng(1)
    half = generator.normal(size=(3, size, size)).astype(np.float32)
    block = half + half.transpose(0, 2, 1)
    packed = pack_triangles(block)
    np.testing.assert_array_equal(packed, [one[np.triu_indices(size)] for one in block])
    np.testing.assert_array_equal(unpack_triangles(packed, size), block)


def test_bounds_of_blocks():
    assert block_bounds(10, 10) == ((0, 10),)
    assert block_bounds(10, 4) == ((0, 3), (3, 6), (6, 10))


def test_moments_that_do_not_fit_together():
    counts, total = np.zeros(1, np.int64), np.zeros((1, 3), np.float32)
    good = {
        "kinds": ("linear",),
        "shape": (2, 3),
        "layout": "rows",
        "n_vectors": counts,
        "total": total,
        "second": (np.zeros((1, 3, 3), np.float32),),
        "holdout_n_vectors": counts,
    }
    Moments(**good)
    for bad in (
        {"shape": (3,)},
        {"kinds": ()},
        {"n_vectors": np.zeros(2, np.int64)},
        {"n_vectors": counts - 1},
        {"total": total.astype(np.float64)},
        {"total": total[:, :2]},
        {"second": (np.zeros((1, 2, 2), np.float32),)},
        {"holdout": (np.zeros((2, 3, 3), np.float32),)},
        {"row_weights": np.zeros(3)},
        {"influence": np.zeros(3)},
        {"cross": (np.zeros((1, 2, 2), np.float32),)},
        {"cross": (np.zeros((1, 3, 3)),)},
        {"cross": good["second"], "holdout": good["second"]},
        {"cross": good["second"], "holdout": good["second"], "holdout_cross": good["second"] * 2},
        {"holdout_cross": good["second"]},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            Moments(**good | bad)


def test_a_name_with_a_slash_is_refused(tmp_path):
    torch.manual_seed(1)
    model = nn.Sequential()
    model.add_module("a/b", nn.Linear(3, 2))
    with pytest.raises(EncodeError, match="slash"):
        calibrate(model, some_batches()).save(tmp_path / "stats")
    assert not list(tmp_path.iterdir())
