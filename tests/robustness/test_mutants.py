"""The deliberate bugs of tools/mutants.py can still be planted. Whether tests catch them, the tool tells."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "mutants.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("mutants", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module


def test_every_bug_can_be_planted_and_is_python():
    tool = load_tool()
    assert len(tool.MUTANTS) >= 40
    for mutant in tool.MUTANTS:
        compile(tool.source(mutant), mutant.path, "exec")
        assert mutant.path in tool.TESTS


def test_the_tests_that_are_run_exist():
    for paths in load_tool().TESTS.values():
        assert [path for path in paths if not (TOOL.parents[1] / path).exists()] == []
