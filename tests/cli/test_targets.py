from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dcompress.numpy as dnp

LENET_5 = Path(__file__).parents[2] / "fixtures" / "models" / "lenet_5.safetensors"


@pytest.fixture
def model(folder):
    """A small model; encoding it takes no time."""
    rng = np.random.default_rng(5)
    tensors = {
        "conv.weight": rng.laplace(size=(8, 4, 3, 3)).astype(np.float32),
        "fc.weight": rng.normal(size=(60, 90)).astype(np.float32),
        "fc.bias": rng.normal(size=60).astype(np.float32),
    }
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def sqnr(path, frame):
    """Return the SQNR of all matrices together, as a decoder finds it."""
    before, after = load_file(path), dnp.load_file(frame)
    names = [name for name, array in before.items() if sum(n > 1 for n in array.shape) > 1]
    signal = sum(np.square(before[name], dtype=np.float64).sum() for name in names)
    noise = sum(np.square(before[name].astype(np.float64) - after[name]).sum() for name in names)
    return 10 * np.log10(signal / noise)


def test_a_size(dcz, model):
    result = dcz("encode", model, "--target-size", "3kB", "-1")
    n_bytes = model.with_suffix(".dcz").stat().st_size
    assert 2_970 <= n_bytes <= 3_000
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        rf"target 3,000 bytes: {n_bytes:,} bytes, step 0\.\d+, quality [\d.]+ dB, \d+ trials?", lines[-3]
    )
    assert f"-> {n_bytes:,} bytes" in lines[-1]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("--target-ratio", "9", "target_ratio"),
        ("--target-bpw", "3.5", "target_bpw"),
        ("--quality", "17.5", "quality"),
        ("--target-size", "2.5KiB", "target_size"),
    ],
)
def test_all_targets_as_json(dcz, model, option, value, kind):
    result = dcz("encode", model, option, value, "-2", "--json")
    report = json.loads(result.stdout)
    target = report["target"]
    n_bytes = model.with_suffix(".dcz").stat().st_size
    asked = 2560 if kind == "target_size" else float(value)
    assert report["effort"] == 2
    assert (target["kind"], target["asked"], target["met"]) == (kind, asked, True)
    reached = {
        "target_ratio": (4 * (288 + 5400 + 60)) / n_bytes,
        "target_bpw": 8 * n_bytes / (288 + 5400),
        "quality": sqnr(model, model.with_suffix(".dcz")),
        "target_size": n_bytes,
    }
    assert target["reached"] == pytest.approx(reached[kind], rel=1e-4)
    assert target["sqnr_db"] == pytest.approx(reached["quality"], rel=1e-4)
    assert target["bits_per_matrix_weight"] == pytest.approx(reached["target_bpw"])
    assert report["recipe"] == {"preset": "balanced", "step": target["step"]}
    assert 1 <= target["trials"] <= 10
    if kind in ("target_ratio", "quality"):
        assert asked <= reached[kind] <= 1.01 * asked
    else:
        assert 0.99 * asked <= reached[kind] <= asked


def test_without_a_target_json_says_so(dcz, model):
    report = json.loads(dcz("encode", model, "--json").stdout)
    assert (report["target"], report["effort"]) == (None, 6)


def test_the_recipe_of_the_receipt_gives_the_same_file(dcz, model):
    dcz("encode", model, "--quality", "20", "-1", "-q")
    frame = model.with_suffix(".dcz")
    recipe = json.loads(dcz("info", frame, "--json").stdout)["recipe"]
    recipe_file = model.with_name("r.toml")
    recipe_file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in recipe.items()))
    dcz("encode", model, "--recipe", recipe_file, "-1", "-q", "-o", model.with_name("again.dcz"))
    assert model.with_name("again.dcz").read_bytes() == frame.read_bytes()


def test_dry_run_reaches_the_target_too(dcz, model, listing):
    result = dcz("encode", model, "--quality", "20", "-1", "--dry-run")
    assert re.search(r"rate step 0\.\d+\n", result.stdout)
    assert "rate step <= 0." in result.stdout
    assert "target 20 dB: 20.0" in result.stdout
    assert result.stderr == "dcz: note: dry run: nothing was written\n"


def test_with_rules_exclusions_and_sparsity(dcz, model):
    options = ("--sparsity", "0.5", "--set", "conv*:bits=2", "--exclude", "*.bias")
    dcz("encode", model, "--target-bpw", "2.5", "-1", "-q", *options)
    before, after = load_file(model), dnp.load_file(model.with_suffix(".dcz"))
    assert np.count_nonzero(after["fc.weight"] == 0) >= 2700
    assert np.unique(after["conv.weight"]).size <= 5
    assert after["fc.bias"].tobytes() == before["fc.bias"].tobytes()
    dcz("encode", model, "--target-bpw", "2.5", "-1", "-q", "-f", "--preset", "paper")
    assert np.count_nonzero(dnp.load_file(model.with_suffix(".dcz"))["fc.weight"] == 0) >= 0.74 * 5400


def test_to_stdout(dcz, model):
    result = dcz("encode", model, "--quality", "20", "-1", "-o", "-")
    dcz("encode", model, "--quality", "20", "-1", "-q")
    assert result.stdout_bytes == model.with_suffix(".dcz").read_bytes()
    assert "target 20 dB" in result.stderr


def test_a_target_that_can_only_be_met_from_afar_is_a_note(dcz, folder):
    save_file(
        {"fc.weight": np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)},
        folder / "one.safetensors",
    )
    result = dcz("encode", folder / "one.safetensors", "--target-bpw", "20", "-1")
    assert re.match(
        r"dcz: note: 20 bits per weight of matrices and kernels cannot be met within 1%: 1\d\.\d+ bits per "
        r"weight of matrices and kernels is the nearest on its right side \(quality \d\d\.\d\d dB\)\n",
        result.stderr,
    )
    assert (folder / "one.dcz").exists()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("--target-size 5XB", 2, "'5XB' is no size: write it like 500kB"),
        ("--target-size 0", 2, "target_size must be a number above 0"),
        ("--target-ratio ten", 2, "'ten' is not a number"),
        ("--target-ratio -3", 2, "target_ratio must be a number above 0"),
        ("--quality nan", 2, "quality must be a number above 0"),
        (
            "--quality 20 --target-size 3kB",
            2,
            "--quality and --target-size exclude each other: give one target",
        ),
        (
            "--quality 20 --bits 4",
            2,
            "--bits and --quality exclude each other: --bits sets the precision that",
        ),
        ("--quality 20 --recipe bits.toml", 2, "bits = 4 for all tensors and a target do not go together"),
        ("--quality 20 --exclude *", 2, "no matrix or kernel that is free to be quantised"),
        (
            "--target-size 100",
            2,
            r"100 bytes cannot be reached: with nothing left .* the file still takes [\d,]+",
        ),
        ("--target-size 1MB", 2, r"1,000,000 bytes: the model comes to [\d,]+ bytes without any loss"),
        ("--target-ratio 1.1", 2, "use preset lossless, no target"),
        ("--quality 20 --set fc*:bits=3,step=2", 2, "bits, step do not go together"),
        ("--set fc*:method=rate", 2, "'fc.bias': method 'rate' needs a step"),
        ("--set fc*:step=0", 2, "step must be a number above 0"),
        ("--effort 10", 2, "'--effort'"),
        ("--effort x", 2, "'--effort'"),
        ("-0", 2, "-0"),
        ("-12", 2, "-1 and -2 exclude each other: an effort is one number, 1 to 9"),
    ],
)
def test_errors(fails, folder, model, listing, monkeypatch, args, code, says):
    monkeypatch.chdir(folder)
    (folder / "bits.toml").write_text("bits = 4\n")
    fails("encode", model.name, *args.split(), code=code, says=says)
    (folder / "bits.toml").unlink()


@pytest.mark.parametrize("effort", [("-1",), ("-9",), ("--effort", "4"), ("-3", "--effort=3"), ("-9f",), ()])
def test_effort(dcz, folder, model, effort):
    asked = json.loads(dcz("encode", model, "--dry-run", "--json", *effort, "-q").stdout)["effort"]
    assert asked == (int(re.search(r"\d", "".join(effort))[0]) if effort else 6)


def test_more_effort_gives_a_smaller_file(dcz, folder):
    shutil.copy(LENET_5, folder / "lenet_5.safetensors")
    sizes = []
    for effort in ("-1", "-6"):
        dcz("encode", folder / "lenet_5.safetensors", "--quality", "15", effort, "-q", "-f")
        sizes.append((folder / "lenet_5.dcz").stat().st_size)
        dcz("verify", folder / "lenet_5.dcz")
    assert sizes[1] < 0.95 * sizes[0]


def test_help_names_efforts_and_targets(dcz):
    text = dcz("encode", "--help").stdout
    assert "-1 ... -9, --effort N" in text
    assert "-2" not in text.replace("-1 ... -9", "")
    for option in ("--target-size", "--target-ratio", "--target-bpw", "--quality"):
        assert option in text
