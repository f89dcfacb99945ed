"""Run the pseudo-code of spec/dcz-1.md over all vectors: exact tensors, or the exact rule.

    python tools/check_spec.py [--all]

Prints a line for each disagreement, and a summary; ends with 1 if there is any. Nothing of the package is
imported: the text and the vectors are all there is.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Breach",
    "Limits",
    "baseline_limits",
    "beyond_baseline",
    "check_all",
    "dtype_numbers",
    "load_spec",
    "outcome",
    "read_manifest",
    "spec_blocks",
    "spec_text",
]

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"


class Breach(Exception):  # noqa: N818
    """What the pseudo-code's ``fail`` raises: a rule is broken."""


class Limits:
    """The limits of section 13, column Default; keyword arguments set others."""

    def __init__(self, **others: int) -> None:
        self.max_output_bytes: int | None = None
        self.max_directory_bytes = 268435456
        self.max_tensors = 1048576
        self.max_rank = 64
        self.max_name_bytes = 65536
        self.max_names_bytes = 16777216
        self.max_section_bytes = 67108864
        unknown = others.keys() - vars(self).keys()
        if unknown:
            raise TypeError(f"no such limits: {unknown}")
        vars(self).update(others)

    def output_bytes(self, frame_bytes: int) -> int:
        """Return the decoded bytes that a frame of this size may have."""
        return max(2**32, 4096 * frame_bytes) if self.max_output_bytes is None else self.max_output_bytes


def spec_text() -> str:
    """Return the text of the spec."""
    return (ROOT / "spec" / "dcz-1.md").read_text(encoding="utf-8")


def spec_blocks(examples: bool = True) -> list[str]:
    """Return the blocks of pseudo-code, and those of examples if asked for, in the order of the text."""
    blocks = re.findall(r"^```python( example)?\n(.*?)^```$", spec_text(), re.DOTALL | re.MULTILINE)
    return [block for example, block in blocks if examples or not example]


def _fail(rule: str) -> None:
    raise Breach(rule)


def _is_utf8(data: bytes) -> bool:
    try:
        bytes(data).decode()
    except UnicodeDecodeError:
        return False
    return True


def load_spec() -> SimpleNamespace:
    """Return all names that the pseudo-code defines; its examples are run, too."""
    names: dict[str, Any] = {
        "fail": _fail,
        "is_utf8": _is_utf8,
        "bit_length": int.bit_length,
        "little_endian": lambda words, n: b"".join(word.to_bytes(n, "little") for word in words),
    }
    for block in spec_blocks():
        exec(block, names)  # the text of this very repository
    assign_codes = lru_cache(names["assign_codes"])
    names["assign_codes"] = lambda lengths: assign_codes(tuple(lengths))
    return SimpleNamespace(**names)


def read_manifest() -> dict[str, Any]:
    """Return fixtures/manifest.toml."""
    return tomllib.loads((FIXTURES / "manifest.toml").read_text(encoding="utf-8"))


def outcome(
    spec: SimpleNamespace, frame: bytes, limits: Limits, sections: bool = False
) -> str | list[dict[str, Any]]:
    """Return the rule that a frame breaks, or its tensors as the manifest has them."""
    try:
        records = spec.read_frame(frame, limits)
        decoded = spec.decode_frame(frame, limits)
        if sections:
            for section in records[3]:
                spec.read_section(frame, section, limits)
    except Breach as breach:
        return str(breach)
    names = [name for name, *_ in decoded]
    tensors = []
    for record, (name, dtype, shape, words) in zip(records[1], decoded, strict=True):
        data = b"".join(word.to_bytes(spec.DTYPES[dtype][1], "little") for word in words)
        one = {
            "name": name.decode(),
            "dtype": dtype,
            "shape": list(shape),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        if record.alias_of is not None:
            one["alias_of"] = names[record.alias_of].decode()
        tensors.append(one)
    return tensors


def _wanted(entry: dict[str, Any], numbers: dict[str, int]) -> list[dict[str, Any]]:
    """Return the tensors of a manifest entry, as ``outcome`` has them."""
    keys = ("name", "shape", "sha256", "alias_of")
    return [
        {"dtype": numbers[tensor["dtype"]], **{key: tensor[key] for key in keys if key in tensor}}
        for tensor in entry["tensors"]
    ]


def dtype_numbers() -> dict[str, int]:
    """Return the element types of section 14.1 by name."""
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (?:unsigned|signed|float) \|", spec_text(), re.MULTILINE)
    return {name: int(number) for number, name in rows}


def baseline_limits() -> Limits:
    """Return the limits of section 13, column Baseline."""
    names = {
        "LIM-01": "max_directory_bytes",
        "LIM-02": "max_tensors",
        "LIM-03": "max_rank",
        "LIM-04": "max_name_bytes",
        "LIM-07": "max_names_bytes",
    }
    rows = re.findall(r"^\| .* \| ([\d,]+) \| .* \| (LIM-\d\d) \| LIM-\d\d \|$", spec_text(), re.MULTILINE)
    return Limits(**{names[rule]: int(cap.replace(",", "")) for cap, rule in rows})


def beyond_baseline(spec: SimpleNamespace, frame: bytes) -> str:
    """Return the rule with which a decoder of the baseline profile refuses a valid frame, or ""."""
    try:
        spec.check_baseline(frame, baseline_limits())
    except Breach as breach:
        return str(breach)
    return ""


def check_all(spec: SimpleNamespace) -> Iterator[tuple[str, str, str, float]]:
    """Yield file, what was expected, what is wrong (empty if nothing) and seconds, for every vector."""
    manifest, numbers = read_manifest(), dtype_numbers()
    for folder in ("valid", "invalid"):
        for entry in manifest[folder]:
            started = time.perf_counter()
            frame = (FIXTURES / folder / entry["file"]).read_bytes()
            limits = Limits(**entry.get("limits", {}))
            sections = "read" in entry
            found = outcome(spec, frame, limits, sections)
            if folder == "valid":
                wrong = "" if found == _wanted(entry, numbers) else f"found {found}"
                profile = beyond_baseline(spec, frame)
                if profile != entry.get("baseline_rule", "") or entry["baseline"] != (not profile):
                    wrong += f"baseline profile: {profile or 'read'}"
            else:
                # What sections hold, the pseudo-code leaves alone.
                skipped = entry.get("read") == "json" and not isinstance(found, str)
                wrong = "" if skipped or found in (entry["rule"], entry.get("or")) else f"found {found}"
            yield f"{folder}/{entry['file']}", entry.get("rule", "ok"), wrong, time.perf_counter() - started


def main() -> int:
    """Check all vectors; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="a line for every vector")
    options = parser.parse_args()
    results, n_wrong = Counter(), 0
    for file, expected, wrong, seconds in check_all(load_spec()):
        results[expected] += 1
        n_wrong += bool(wrong)
        if wrong or options.all:
            print(f"{'WRONG' if wrong else 'right'}  {expected:7} {seconds:6.2f} s  {file}  {wrong[:300]}")
    rules = len(results) - ("ok" in results)
    n_invalid = sum(results.values()) - results["ok"]
    print(
        f"{results['ok']} valid vectors, {n_invalid} invalid ones for {rules} rules: {n_wrong} disagreements"
    )
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
