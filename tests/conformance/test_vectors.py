"""Every vector, read by the NumPy kernels, the Numba kernels, the NumPy face and the spec's own pseudo-code.

Valid ones give exactly what was meant, invalid ones exactly their rule and its class of error.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import dcompress.numpy as dnp
from dcompress import errors
from dcompress.constants import CODER_NAMES
from dcompress.decode import open_frame
from dcompress.inspection import read_receipt, read_torch_extra
from dcompress.limits import DecodeLimits
from tests.checks import error_of, flipped
from tests.vectors import FIXTURES, INVALID, ROOT, VALID, check_spec, frame_bytes, pseudo_code

_MOST_BYTES = 64 << 20
_MOST_SECONDS = 1.0
# One small frame for each coder, and what stands around tensors.
_DAMAGED = [
    "aliases",
    "metadata",
    "sections",
    "codebook-not-even",
    "raw-chunks",
    "rank-0",
    "runs-short-fillers",
    "runs-dense",
    "one-label",
    "planes-longest-codes",
    "context-even",
    "context-no-bits",
    "table-set-rare-symbols",
]

each_valid = pytest.mark.parametrize("entry", VALID, ids=lambda entry: entry["file"])
each_invalid = pytest.mark.parametrize("entry", INVALID, ids=lambda entry: entry["file"])


def limits_of(entry) -> DecodeLimits:
    return DecodeLimits(**entry.get("limits", {}))


def read_frame(frame: bytes, limits: DecodeLimits, sections: bool):
    """Decode all tensors, and all else that may be wrong."""
    with open_frame(frame, limits=limits) as reader:
        tensors = reader.read_all()
        if sections:
            reader.verify_sections()
            read_receipt(reader)
            read_torch_extra(reader)
    return tensors, reader.directory


def check_error(error, entry) -> None:
    assert error is not None, "it was read"
    rules = {entry["rule"]: entry["error"]}
    if "or" in entry:
        rules[entry["or"]] = rule_errors()[entry["or"]]
    assert error.rule in rules, str(error)
    assert type(error) is getattr(errors, rules[error.rule])


def rule_errors() -> dict[str, str]:
    """Return the class of error of every rule, by the spec."""
    rows = re.findall(r"^\| ([A-Z]{3}-\d\d) \| .* \| (\w+Error) \|", check_spec.spec_text(), re.MULTILINE)
    return dict(rows)


@each_valid
def test_valid_vectors_decode_to_what_was_meant(entry, kernel):
    frame = frame_bytes("valid", entry["file"])
    assert len(frame) == entry["bytes"]
    decoded, directory = read_frame(frame, limits_of(entry), "read" in entry)
    assert directory.version == (1, entry["minor_version"])
    assert directory.metadata == entry.get("metadata", {})
    for wanted, (name, tensor) in zip(entry["tensors"], decoded.items(), strict=True):
        record = directory.tensors[name]
        assert (name, tensor.dtype.name) == (wanted["name"], wanted["dtype"])
        assert tensor.shape == tuple(wanted["shape"])
        assert hashlib.sha256(tensor.words.tobytes()).hexdigest() == wanted["sha256"]
        assert record.alias_of == wanted.get("alias_of")
        assert (CODER_NAMES[record.coder] if record.n_words else "none") == wanted["coder"]


@each_valid
def test_valid_vectors_as_arrays(entry):
    try:
        arrays = dnp.load(frame_bytes("valid", entry["file"]), limits=limits_of(entry))
    except ValueError:
        assert np.lib.NumpyVersion(np.__version__) < "2.0.0"  # it has no more than 32 dimensions
        assert entry["file"].endswith("rank-64.dcz")
        return
    for wanted, (name, array) in zip(entry["tensors"], arrays.items(), strict=True):
        assert (name, array.shape[: len(wanted["shape"])]) == (wanted["name"], tuple(wanted["shape"]))
        assert hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() == wanted["sha256"]


@each_invalid
def test_invalid_vectors_break_exactly_their_rule(entry, kernel):
    frame = frame_bytes("invalid", entry["file"])
    sections = "read" in entry
    check_error(error_of(read_frame, frame, limits_of(entry), sections), entry)
    if sections:  # a reader that skips sections never notices
        read_frame(frame, DecodeLimits(), False)


@pytest.mark.parametrize("threads", [1, 2])
@each_invalid
def test_invalid_vectors_give_no_arrays(entry, threads, reference_kernels):
    if "read" not in entry:
        frame = frame_bytes("invalid", entry["file"])
        check_error(error_of(lambda: dnp.load(frame, limits=limits_of(entry), threads=threads)), entry)


def test_the_pseudo_code_agrees():
    disagreements = [one for one in check_spec.check_all(pseudo_code()) if one[2]]
    assert not disagreements


def test_every_rule_has_a_vector_and_its_error():
    classes = rule_errors()
    assert len(classes) > 70
    for entry in INVALID:
        assert entry["error"] == classes[entry["rule"]]
        assert entry["file"].startswith(entry["rule"] + "-")
        assert entry["careless"]
    profile = {entry["baseline_rule"] for entry in VALID if not entry["baseline"]}
    assert "LIM-08" in profile
    assert {entry["rule"] for entry in INVALID} | {"LIM-08"} == set(classes)


def test_every_coder_and_dtype_is_in_a_valid_vector():
    tensors = [tensor for entry in VALID for tensor in entry["tensors"]]
    pairs = {(tensor["coder"], tensor["dtype"]) for tensor in tensors}
    names = set(check_spec.dtype_numbers())
    assert len(names) == 22
    assert pairs >= {(coder, name) for coder in CODER_NAMES.values() for name in names}


def test_files_and_manifest_name_each_other():
    for folder, entries in (("valid", VALID), ("invalid", INVALID)):
        files = [entry["file"] for entry in entries]
        assert len(files) == len(set(files))
        assert {path.name for path in (FIXTURES / folder).iterdir()} == set(files)
    assert len(VALID) + len(INVALID) >= 150
    sizes = [path.stat().st_size for path in FIXTURES.glob("*valid/*.dcz")]
    assert max(sizes) <= 64 << 10
    assert sum(size < 300 for size in sizes) > len(sizes) / 2
    assert sum(sizes) < 1 << 20


def test_the_tool_makes_these_very_files():
    run = [sys.executable, str(ROOT / "tools" / "make_vectors.py"), "--check"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_worked_example_is_what_the_tool_makes_of_it():
    (entry,) = (entry for entry in VALID if entry["file"].endswith("worked-example.dcz"))
    assert frame_bytes("valid", entry["file"]) == (FIXTURES / "examples" / "worked.dcz").read_bytes()


def test_the_tool_imports_nothing_of_the_package():
    paths = [
        *(ROOT / "tools").glob("vector_*.py"),
        *(ROOT / "tools" / f for f in ("make_vectors.py", "check_spec.py")),
    ]
    assert len(paths) > 10
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("dcompress", "tests")], path.name


def test_the_check_finds_changed_files(tmp_path):
    """A byte changed, a file too many, a file gone; of the tool, all but the making is run."""
    right, wrong = (f"valid/{entry['file']}" for entry in VALID[:2])
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); import make_vectors\n"
        "folder = pathlib.Path(sys.argv[2]); make_vectors.FIXTURES = folder\n"
        "wanted = {name: (folder / sys.argv[3]).read_bytes() for name in sys.argv[3:]}\n"
        "make_vectors.make = lambda: wanted; sys.argv = ['make_vectors', '--check']\n"
        "sys.exit(make_vectors.main())"
    )
    for folder in ("valid", "invalid"):
        (tmp_path / folder).mkdir()
    frame = frame_bytes("valid", VALID[0]["file"])
    (tmp_path / right).write_bytes(frame)
    (tmp_path / wrong).write_bytes(flipped(frame, 100))
    (tmp_path / "invalid" / "other.dcz").write_bytes(b"")
    run = [sys.executable, "-c", code, str(ROOT / "tools"), str(tmp_path), right, wrong, "manifest.toml"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "invalid/other.dcz: not from this tool",
        "manifest.toml: missing",
        f"{wrong}: differs",
        "3 files, 3 differences",
    ]


_HOSTILE = """
import json, pathlib, sys, time
from dcompress.decode import open_frame
from dcompress.errors import DecodeError
from dcompress.inspection import read_receipt, read_torch_extra
from dcompress.limits import DecodeLimits

def peak(reset):
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10

def read(frame, limits):
    try:
        with open_frame(frame, limits=limits) as reader:
            reader.read_all()
            reader.verify_sections()
            read_receipt(reader)
            read_torch_extra(reader)
    except DecodeError as error:
        return error.rule

folder = pathlib.Path(sys.argv[1])
entries = json.load(sys.stdin)
for measured in (False, True):  # kernels are compiled or loaded before anything is measured
    for entry in entries:
        frame, limits = (folder / entry["file"]).read_bytes(), DecodeLimits(**entry.get("limits", {}))
        before, started = peak(True), time.process_time()
        rule = read(frame, limits)
        seconds, n_bytes = time.process_time() - started, peak(False) - before
        if measured:
            print(json.dumps([entry["file"], rule, seconds, n_bytes]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured by /proc")
@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_no_invalid_vector_takes_memory_or_time(kernels):
    run = [sys.executable, "-c", _HOSTILE, str(FIXTURES / "invalid")]
    environment = {**os.environ, "DCOMPRESS_KERNELS": kernels}
    done = subprocess.run(
        run, input=json.dumps(INVALID), capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(INVALID)
    greedy = [one for one in results if one[2] > _MOST_SECONDS or one[3] > _MOST_BYTES]
    assert not greedy
    assert all(rule for _, rule, _, _ in results)


@pytest.mark.parametrize("subject", _DAMAGED)
def test_every_cut_and_every_flipped_bit_is_refused(subject, kernel):
    entry = next(entry for entry in VALID if entry["file"].split("-", 1)[1] == f"{subject}.dcz")
    frame = frame_bytes("valid", entry["file"])
    for size in range(len(frame)):
        assert error_of(read_frame, frame[:size], DecodeLimits(), True) is not None, size
    for bit in range(8 * len(frame)):
        assert error_of(read_frame, flipped(frame, bit), DecodeLimits(), True) is not None, bit


def test_the_damaged_vectors_cover_all_coders():
    entries = [entry for entry in VALID if entry["file"].split("-", 1)[1].removesuffix(".dcz") in _DAMAGED]
    assert len(entries) == len(_DAMAGED)
    coders = {tensor["coder"] for entry in entries for tensor in entry["tensors"]}
    assert coders >= set(CODER_NAMES.values())
