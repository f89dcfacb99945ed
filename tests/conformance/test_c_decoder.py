"""The C99 decoder of spec/reference: same tensors or same rule as the vectors and the package say."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from dcompress.checksum import checksum
from dcompress.cursor import write_varint
from dcompress.decode import open_frame
from dcompress.encode import encode_checkpoint
from dcompress.model_file import read_checkpoint
from dcompress.recipe import PRESETS, Recipe
from dcompress.step_search import encode_to_target
from dcompress.targets import make_target

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "spec" / "reference"
FIXTURES = ROOT / "fixtures"
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
MODELS = sorted(path for path in (FIXTURES / "models").iterdir() if path.suffix in (".safetensors", ".npz"))
PROGRAM = [REFERENCE / "main.c", REFERENCE / "dcz_decode.c"]
NOT_FOR_C = {"SEC-02"}  # what sections hold is not for this decoder


def find_compiler() -> str | None:
    """Return a C compiler; in CI one must be there."""
    found = next(
        (name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and shutil.which(name)), None
    )
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("CI has no C compiler")
    return found


def compile_c(out: Path, sources: list[Path], *flags: str) -> subprocess.CompletedProcess[str]:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) on this machine")
    command = [compiler, *WARNINGS, *flags, f"-I{REFERENCE}", *map(str, sources), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Return a function that compiles sources once, and gives the program."""
    folder = tmp_path_factory.mktemp("c")
    made: dict[str, Path] = {}

    def make(name: str, sources: list[Path], *flags: str) -> Path:
        if name not in made:
            done = compile_c(folder / name, sources, *flags)
            assert done.returncode == 0, done.stderr
            assert done.stderr == ""
            made[name] = folder / name
        return made[name]

    return make


@pytest.fixture(scope="session")
def dcz_read(build):
    return build("dcz-read", PROGRAM, "-O3")


@pytest.fixture(scope="session")
def sanitized(build, tmp_path_factory):
    """Return dcz-read with sanitizers, where the compiler has them."""
    probe = tmp_path_factory.mktemp("probe")
    (probe / "main.c").write_text("int main(void) { return 0; }\n")
    if compile_c(probe / "main", [probe / "main.c"], *SANITIZERS).returncode != 0:
        pytest.skip("this compiler has no sanitizers")
    return build("dcz-read-asan", PROGRAM, *SANITIZERS)


def run(program: Path, *args: Any) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def rule_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the rule that the program names, or what went wrong otherwise."""
    if done.returncode == 0:
        return "accepted"
    found = re.search(r"rule ([A-Z]{3}-\d\d)\n$", done.stderr)
    return found[1] if found else f"exit {done.returncode}: {done.stderr}"


def escape(name: str) -> str:
    return "".join(f"\\x{b:02x}" if b < 32 or b >= 127 or b == 92 else chr(b) for b in name.encode())


def shape_text(shape: Any) -> str:
    return "x".join(map(str, shape)) or "-"


def read_all(program: Path, path: Path, folder: Path, *options: Any) -> list[tuple[str, str, str, str]]:
    """Return name, element type, shape and digest of every tensor that the program writes."""
    folder.mkdir(exist_ok=True)
    done = run(program, *options, "write", path, "-o", folder)
    assert done.returncode == 0, done.stderr
    tensors, types = [], {}
    for line in (folder / "tensors.txt").read_bytes().decode().split("\n")[:-1]:
        number, dtype, shape, _, source, name = line.split("\t")
        types[number] = types[source] if dtype == "alias" else (dtype, shape)
        digest = hashlib.sha256((folder / f"{source}.bin").read_bytes()).hexdigest()
        tensors.append((name, *types[number], digest))
    return tensors


def manifest() -> dict[str, list[dict[str, Any]]]:
    path = FIXTURES / "manifest.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {"valid": [], "invalid": []}


def limits_of(vector: dict[str, Any]) -> list[str]:
    options = []
    for name, value in vector.get("limits", {}).items():
        options += (
            ["-M", str(value)]
            if name == "max_output_bytes"
            else ["-L", f"{name.removeprefix('max_')}={value}"]
        )
    return options


def test_rules_are_those_of_the_spec():
    header = (REFERENCE / "dcz_decode.h").read_text(encoding="utf-8")
    spec = (ROOT / "spec" / "dcz-1.md").read_text(encoding="utf-8")
    classes = {
        "CORRUPT": "CorruptError",
        "TRUNCATED": "TruncatedError",
        "NOT_DCZ": "NotDczError",
        "UNSUPPORTED": "UnsupportedError",
        "CHECKSUM": "ChecksumError",
        "LIMIT": "LimitError",
    }
    in_c = {f"{a}-{b}": classes[c] for a, b, c in re.findall(r"RULE\(([A-Z]{3}), (\d\d), ([A-Z_]+),", header)}
    in_spec = dict(re.findall(r"^\| ([A-Z]{3}-\d\d) \|[^\n]*?\| (\w+Error)", spec, re.MULTILINE))
    assert in_c == {rule: error for rule, error in in_spec.items() if rule not in NOT_FOR_C}
    code = (REFERENCE / "dcz_decode.c").read_text(encoding="utf-8")
    assert set(re.findall(r"DCZ_([A-Z]{3}_\d\d)", code)) == {rule.replace("-", "_") for rule in in_c}


@pytest.mark.parametrize("options", [(), ("-m",), ("-s", "-m")], ids=["fast", "least memory", "streamed"])
def test_valid_vectors(dcz_read, tmp_path, options):
    vectors = manifest()["valid"]
    for vector in vectors:
        path = FIXTURES / "valid" / vector["file"]
        expected = [
            (escape(t["name"]), t["dtype"], shape_text(t["shape"]), t["sha256"]) for t in vector["tensors"]
        ]
        found = read_all(dcz_read, path, tmp_path / "out", *options, *limits_of(vector))
        assert found == expected, vector["file"]
        done = run(dcz_read, *options, *limits_of(vector), "verify", path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [(), ("-s", "-m")], ids=["fast", "streamed"])
def test_invalid_vectors(dcz_read, options):
    exit_codes = {"UnsupportedError": 4, "LimitError": 5}
    for vector in manifest()["invalid"]:
        if vector["rule"] in NOT_FOR_C or vector["rule"] == "LIM-08" or vector.get("read") == "json":
            continue
        path = FIXTURES / "invalid" / vector["file"]
        done = run(dcz_read, *options, *limits_of(vector), "verify", path)
        assert rule_of(done) in (vector["rule"], vector.get("or")), vector["file"]
        if rule_of(done) == vector["rule"]:
            assert done.returncode == exit_codes.get(vector["error"], 3), vector["file"]


def test_baseline_profile(build, tmp_path):
    program = build("dcz-read-baseline", PROGRAM, "-O2", "-DDCZ_BASELINE")
    for vector in manifest()["valid"]:
        path = FIXTURES / "valid" / vector["file"]
        if vector["baseline"]:
            expected = [t["sha256"] for t in vector["tensors"]]
            found = read_all(program, path, tmp_path / "out", *limits_of(vector))
            assert [digest for *_, digest in found] == expected, vector["file"]
        else:
            assert rule_of(run(program, "verify", path)) == vector["baseline_rule"], vector["file"]


def test_sanitized(sanitized):
    """Address and undefined-behaviour sanitizers find nothing in any vector."""
    entries = manifest()
    for kind in ("valid", "invalid"):
        for vector in entries[kind]:
            done = run(sanitized, *limits_of(vector), "verify", FIXTURES / kind / vector["file"])
            assert done.returncode in (0, 3, 4, 5), done.stderr
            assert "Sanitizer" not in done.stderr, done.stderr
            assert "runtime error" not in done.stderr, done.stderr


def test_worked_example(dcz_read, tmp_path):
    path = FIXTURES / "examples" / "worked.dcz"
    assert read_all(dcz_read, path, tmp_path / "out") == read_with_package(path.read_bytes())


def read_with_package(frame: bytes) -> list[tuple[str, str, str, str]]:
    tensors = open_frame(frame).read_all()
    return [
        (
            escape(name),
            tensor.dtype.name,
            shape_text(tensor.shape),
            hashlib.sha256(tensor.words.astype(tensor.words.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        )
        for name, tensor in tensors.items()
    ]


@pytest.mark.filterwarnings("ignore::dcompress.DcompressWarning")
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_models(dcz_read, build, path, preset, tmp_path):
    """What the package encodes, it decodes to the same bytes; the small build too."""
    small = build("dcz-read-small", PROGRAM, "-Os")
    checkpoint = read_checkpoint(path)
    for effort in (1, 6, 9):
        frame = encode_checkpoint(checkpoint, Recipe(preset), effort=effort).to_bytes()
        (tmp_path / "model.dcz").write_bytes(frame)
        expected = read_with_package(frame)
        assert read_all(dcz_read, tmp_path / "model.dcz", tmp_path / "out") == expected
        assert read_all(small, tmp_path / "model.dcz", tmp_path / "out", "-s", "-m") == expected


@pytest.mark.filterwarnings("ignore::dcompress.DcompressWarning")
def test_trellis(dcz_read, tmp_path):
    checkpoint = read_checkpoint(FIXTURES / "models" / "lenet_300_100.safetensors")
    target = make_target(quality=20.0)
    assert target is not None
    frame = encode_to_target(checkpoint, Recipe("balanced"), target, effort=9).frame.to_bytes()
    (tmp_path / "model.dcz").write_bytes(frame)
    assert read_all(dcz_read, tmp_path / "model.dcz", tmp_path / "out") == read_with_package(frame)


def test_every_truncation_and_every_flipped_bit(build):
    """Of small vectors that cover all coders: none is taken."""
    driver = build(
        "driver", [Path(__file__).with_name("c_decoder_driver.c"), REFERENCE / "dcz_decode.c"], "-O2"
    )
    chosen, coders = [FIXTURES / "examples" / "worked.dcz"], {"raw", "zero_run"}
    for vector in manifest()["valid"]:
        if vector["bytes"] <= 700 and "section" not in vector["file"] and "limits" not in vector:
            chosen.append(FIXTURES / "valid" / vector["file"])
            coders |= {tensor["coder"] for tensor in vector["tensors"]}
    done = run(driver, *chosen)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" 0 silent\n")
    if len(chosen) > 1:
        assert coders >= {"raw", "planes", "fixed", "labels", "zero_run", "split_run", "context"}


def test_table_set_is_kept_only_while_it_is_there(build):
    """After calls that failed, with the workspace used for something else, and in another room."""
    calls = build("calls", [Path(__file__).with_name("c_decoder_calls.c"), REFERENCE / "dcz_decode.c"], "-O2")
    for name in ("064-context-every-dtype", "065-context-trellis", "084-table-sets"):
        done = run(calls, FIXTURES / "valid" / f"{name}.dcz")
        assert done.returncode == 0, done.stdout
        assert done.stdout.endswith(" 0 wrong\n")


def test_many_long_names_of_one_prefix(dcz_read, tmp_path):
    """16,384 names of 1,023 bytes (16 MiB together) in a directory of 200 kB: under a second."""
    directory = bytearray(b"\0")
    write_varint(directory, 16384)
    for number in range(16384):
        rest = f"{number:05}".encode() if number else b"x" * 1018 + b"00000"
        write_varint(directory, 1018 if number else 0)
        write_varint(directory, len(rest))
        directory += rest + b"\x0c\1\0"  # float32, of shape (0,)
    directory += b"\0\0"
    for twice in (False, True):
        if twice:  # the last name is that of the one before
            directory[-10:-5] = b"16382"
        head = b"\x89DCZ\r\n\x1a\n\1\0\0\0" + len(directory).to_bytes(4, "little")
        frame = head + checksum(head + directory).to_bytes(4, "little") + directory
        (tmp_path / "names.dcz").write_bytes(frame)
        start = time.perf_counter()
        assert rule_of(run(dcz_read, "verify", tmp_path / "names.dcz")) == ("DIR-03" if twice else "accepted")
        assert time.perf_counter() - start < 5  # a slow and busy machine


def test_messages_and_exit_codes(dcz_read, tmp_path):
    assert run(dcz_read).returncode == 2
    assert run(dcz_read, "verify", tmp_path / "none.dcz").returncode == 1
    (tmp_path / "text.dcz").write_bytes(b"not a frame")
    done = run(dcz_read, "verify", tmp_path / "text.dcz")
    assert (done.returncode, rule_of(done)) == (3, "FRM-02")
    worked = FIXTURES / "examples" / "worked.dcz"
    assert run(dcz_read, "-M", "100", "verify", worked).returncode == 5
    done = run(dcz_read, "list", worked)
    assert done.stdout.splitlines()[0].split() == [
        "fc.weight",
        "float32",
        "4x6",
        "zero_run",
        "1",
        "chunks",
        "17",
        "->",
        "96",
        "bytes",
    ]
    raw = subprocess.run([dcz_read, "write", worked, "fc.bias"], capture_output=True, check=True).stdout
    assert raw == open_frame(worked.read_bytes()).read_tensor("fc.bias").words.tobytes()
    assert run(dcz_read, "write", worked, "no such tensor").returncode == 2


@pytest.mark.parametrize("readme", [REFERENCE / "README.md", ROOT / "README.md"], ids=["reference", "main"])
def test_program_of_the_readme(readme, build, tmp_path):
    """The ten lines that ship a model to a device."""
    text = readme.read_text(encoding="utf-8")
    found = re.search(r"```c\n(.*?)```", text, re.DOTALL)
    assert found
    (tmp_path / "device.c").write_text(found[1])
    frame = (FIXTURES / "examples" / "worked.dcz").read_bytes()
    values = ", ".join(map(str, frame))
    (tmp_path / "model.h").write_text(f"static const unsigned char model[] = {{{values}}};\n")
    program = build("device", [tmp_path / "device.c", REFERENCE / "dcz_decode.c"], "-O2", f"-I{tmp_path}")
    done = run(program)
    bias = open_frame(frame).read_tensor("fc.bias").words.view("f4")
    assert (done.returncode, done.stdout) == (0, f"{bias[0]:g}\n")


def all_frames() -> list[Path]:
    """Return all vectors, and the corpus of the fuzzers."""
    fuzz = ROOT / "tests" / "fuzz"
    folders = (FIXTURES / "valid", FIXTURES / "invalid", fuzz / "corpus", fuzz / "several_rules")
    return [path for folder in folders for path in sorted(folder.glob("*.dcz"))]


def test_corpus_harness(build):
    """The fuzzing harness, without an engine, over vectors and corpus: all ways of decoding agree."""
    program = build("replay", [ROOT / "tests" / "fuzz" / "fuzz_reference.c"], "-O1", "-DDCZ_REPLAY")
    done = run(program, *all_frames())
    assert (done.returncode, done.stdout) == (0, f"{len(all_frames())} files\n")


def test_clang_sanitizers(tmp_path):
    """As above, with those of clang, which see other things than gcc's (offsets of a null pointer)."""
    if shutil.which("clang") is None:
        pytest.skip("no clang on this machine")
    program, harness = tmp_path / "replay", ROOT / "tests" / "fuzz" / "fuzz_reference.c"
    command = [
        "clang",
        *WARNINGS,
        *SANITIZERS,
        "-O0",
        "-DDCZ_REPLAY",
        f"-I{REFERENCE}",
        str(harness),
        "-o",
        str(program),
    ]
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    probe = [*command[:-3], str(tmp_path / "main.c"), "-o", str(program)]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("this clang has no sanitizers")
    subprocess.run(command, check=True)
    done = run(program, *all_frames())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{len(all_frames())} files\n", "")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and clocks")
def test_fast_fuzzer(build, tmp_path):
    """A second of it: it finds nothing, and gets deep into every coder."""
    program = build("fast", [ROOT / "tests" / "fuzz" / "fuzz_fast.c"], "-O2")
    done = run(program, 1, 1, tmp_path / "finding", *sorted((FIXTURES / "valid").glob("*.dcz")))
    assert done.returncode == 0, f"{done.stdout}; seed 1"
    counts = re.findall(r"(\w+) (\d+)/(\d+)", done.stdout.splitlines()[2])
    assert len(counts) == 7
    assert all(int(taken) > 0 and int(refused) > 0 for _, taken, refused in counts), done.stdout
