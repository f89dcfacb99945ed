from __future__ import annotations

import pytest

import dcompress
from tests.calibrated import error, inputs, network, write_files


@pytest.fixture(scope="module")
def stats():
    return dcompress.calibrate(network(), inputs())


@pytest.fixture
def files(tmp_path, stats):
    return write_files(tmp_path, stats)


def test_a_file_of_the_same_size_is_better(files, dcz):
    model, statistics = files / "model.safetensors", files / "stats.safetensors"
    errors = []
    for name, more in (("plain", []), ("fed", ["--calibration", statistics])):
        out = files / f"{name}.dcz"
        dcz("encode", model, "-o", out, "--target-size", "1000", *more)
        assert out.stat().st_size <= 1000
        errors.append(error(dcompress.load_file(out)))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("setting", ["n_m=2:4,bits=3", "n_m=1:2", "sparsity=0.5", "method=rate,step=0.1"])
def test_settings_that_profit(files, dcz, setting):
    model, statistics = files / "model.safetensors", files / "stats.safetensors"
    errors = []
    for name, more in (("plain", []), ("fed", ["--calibration", statistics])):
        dcz(
            "encode", model, "-o", files / name, "--preset", "lossless", "--set", f"*.weight:{setting}", *more
        )
        errors.append(error(dcompress.load_file(files / name)))
    assert errors[1] < errors[0]


def test_wrong_statistics_are_refused_and_named(files, fails):
    model, out = files / "model.safetensors", files / "out.dcz"
    fails("encode", model, "-o", out, "--calibration", files / "none", code=1, says="none: No such file")
    fails("encode", model, "-o", out, "--calibration", model, code=2, says="holds no calibration statistics")
    fails("encode", model, "-o", out, "--calibration", __file__, code=2, says=r"test_calibration\.py: ")
    dcompress.calibrate(network()[2], [one[:, :1].repeat(1, 32) for one in inputs()]).save(files / "other")
    says = "of another model: weight 8x32 is not there"
    fails("encode", model, "-o", out, "--calibration", files / "other", code=2, says=says)
    assert not out.exists()
