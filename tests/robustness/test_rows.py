"""The table of rows: every row has an entry, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\|\s*(\d+)\s*\|[^|]*\|(.*)\|$", TABLE, re.MULTILINE))
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
WITHOUT = {"40", "42", "43"}


def test_every_row_has_a_test():
    assert list(ROWS) == [str(number) for number in range(1, 45)]
    assert {number for number, text in ROWS.items() if not NODE.search(text)} == WITHOUT


def test_every_test_of_the_table_exists():
    nodes = NODE.findall(TABLE)
    assert len(nodes) > 100
    functions = {}
    for path in {path for path, _ in nodes}:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [f"{path}::{name}" for path, name in nodes if name not in functions[path]] == []
    assert all(name.startswith("test_") for _, name in nodes)


def test_paths_in_the_text_exist():
    for path in re.findall(r"`((?:tests|tools)/[\w/]+\.(?:py|sh))`", TABLE):
        assert (ROOT / path).exists(), path
