"""Write the vectors of the format, field by field: fixtures/valid, fixtures/invalid, fixtures/manifest.toml.

    python tools/make_vectors.py            write them
    python tools/make_vectors.py --check    compare byte for byte; 1 if anything differs

Nothing of the package is imported here or in the ``vector_*`` modules: they follow spec/dcz-1.md alone, so
they can make legal frames that our encoder never makes, and illegal ones. What the manifest expects is what
was meant to be written, not what some decoder read.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from itertools import chain
from pathlib import Path
from typing import Any

from vector_bytes import pack_words
from vector_coders import CODERS, Tensor
from vector_frames import BASELINE, beyond_baseline
from vector_invalid import Invalid
from vector_invalid_coders import coder_vectors
from vector_invalid_context import context_breaches
from vector_invalid_directory import directory_vectors
from vector_invalid_frame import frame_vectors
from vector_invalid_limits import limit_vectors
from vector_invalid_tables import table_vectors
from vector_valid import Valid, valid_vectors
from vector_valid_coders import coder_frames
from vector_valid_context import context_vectors
from vector_valid_late import late_vectors
from vector_valid_runs import run_frames, worked_example
from vector_valid_sets import set_frames

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"

# The order of the valid ones gives them their numbers: new ones go to the end.
VALID = (valid_vectors, coder_frames, run_frames, context_vectors, set_frames, worked_example, late_vectors)
INVALID = (frame_vectors, directory_vectors, limit_vectors, coder_vectors, context_breaches, table_vectors)

HEAD = """\
# Written by tools/make_vectors.py; do not edit. fixtures/README.md says what the keys mean.
"""


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """Return a value as TOML; strings are ASCII, with escapes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        quoted = "".join(
            c
            if " " <= c <= "~" and c not in '"\\'
            else f"\\U{ord(c):08X}"
            if ord(c) > 0xFFFF
            else f"\\u{ord(c):04X}"
            for c in value
        )
        return f'"{quoted}"'
    return str(value)


def _tensor(tensor: Tensor, tensors: list[Tensor]) -> dict[str, Any]:
    """Return what the manifest says about a tensor: what was meant, whatever was written."""
    source = tensor if tensor.alias_of is None else tensors[tensor.alias_of]
    entry: dict[str, Any] = {
        "name": tensor.name.decode(),
        "dtype": source.dtype.name,
        "shape": list(source.shape),
    }
    entry["coder"] = CODERS[source.coder] if source.n_words else "none"
    entry["sha256"] = hashlib.sha256(pack_words(source.words, source.dtype.word_bytes)).hexdigest()
    if tensor.alias_of is not None:
        entry["alias_of"] = source.name.decode()
    return entry


def _valid_entry(file: str, vector: Valid) -> str:
    frame = vector.frame
    beyond = beyond_baseline(frame)
    lines = ["[[valid]]", f"file = {_toml(file)}", f"note = {_toml(vector.note)}"]
    lines += [
        f"bytes = {len(frame.to_bytes())}",
        f"minor_version = {frame.minor}",
        f"baseline = {_toml(not beyond)}",
    ]
    if beyond:
        lines += [f"beyond = {_toml(beyond)}", f"baseline_rule = {_toml(BASELINE[beyond[0]][1])}"]
    lines += [f"read = {_toml(vector.read)}"] if vector.read else []
    lines += [f"limits = {_toml(vector.limits)}"] if vector.limits else []
    if frame.metadata:
        lines.append(f"metadata = {_toml({k.decode(): v.decode() for k, v in frame.metadata})}")
    tensors = [f"  {_toml(_tensor(tensor, list(frame.tensors)))},\n" for tensor in frame.tensors]
    return "\n".join([*lines, "tensors = [\n" + "".join(tensors) + "]", ""])


def _invalid_entry(file: str, vector: Invalid) -> str:
    lines = [
        "[[invalid]]",
        f"file = {_toml(file)}",
        f"rule = {_toml(vector.rule)}",
        f"error = {_toml(vector.error)}",
    ]
    lines += [f"or = {_toml(vector.or_rule)}"] if vector.or_rule else []
    lines += [f"read = {_toml(vector.read)}"] if vector.read else []
    lines += [f"limits = {_toml(vector.limits)}"] if vector.limits else []
    lines += ["hostile = true"] if vector.hostile else []
    return "\n".join([*lines, f"careless = {_toml(vector.careless)}", ""])


def make() -> dict[str, bytes]:
    """Return the content of every file, by its path under ``fixtures``."""
    files, entries = {}, [HEAD]
    for number, vector in enumerate(chain.from_iterable(part() for part in VALID), 1):
        name = f"{number:03}-{vector.subject}.dcz"
        files[f"valid/{name}"] = vector.frame.to_bytes()
        entries.append(_valid_entry(name, vector))
    for broken in chain.from_iterable(part() for part in INVALID):
        name = f"{broken.rule}-{broken.reason}.dcz"
        if f"invalid/{name}" in files:
            raise ValueError(f"two vectors of one name: {name}")
        files[f"invalid/{name}"] = broken.to_bytes()
        entries.append(_invalid_entry(name, broken))
    files["manifest.toml"] = "\n".join(entries).encode()
    return files


def _present() -> dict[str, bytes]:
    """Return what stands in ``fixtures`` of all this."""
    paths = [*FIXTURES.glob("valid/*"), *FIXTURES.glob("invalid/*"), FIXTURES / "manifest.toml"]
    return {path.relative_to(FIXTURES).as_posix(): path.read_bytes() for path in paths if path.exists()}


def _state(name: str, wanted: dict[str, bytes], present: dict[str, bytes]) -> str:
    if name not in present:
        return "missing"
    return "differs" if name in wanted else "not from this tool"


def main() -> int:
    """Write or check the vectors; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    options = parser.parse_args()
    wanted, present = make(), _present()
    differences = [
        f"{name}: {_state(name, wanted, present)}"
        for name in sorted(wanted.keys() | present.keys())
        if wanted.get(name) != present.get(name)
    ]
    if options.check:
        print("\n".join([*differences, f"{len(wanted)} files, {len(differences)} differences"]))
        return 1 if differences else 0
    for folder in ("valid", "invalid"):
        (FIXTURES / folder).mkdir(exist_ok=True)
    for name in present.keys() - wanted.keys():
        (FIXTURES / name).unlink()
    for name, content in wanted.items():
        (FIXTURES / name).write_bytes(content)
    n_bytes = sum(map(len, wanted.values()))
    print(f"{len(wanted) - 1} vectors, {n_bytes} bytes with the manifest; {len(differences)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
