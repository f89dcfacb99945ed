"""The vectors of fixtures/, and the decoder that the pseudo-code of the spec is."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

__all__ = ["FIXTURES", "INVALID", "ROOT", "VALID", "check_spec", "frame_bytes", "pseudo_code"]

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"


def _tool(name: str) -> ModuleType:
    """Return a module of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_spec = _tool("check_spec")
_MANIFEST = check_spec.read_manifest()
VALID = _MANIFEST["valid"]
INVALID = _MANIFEST["invalid"]


@cache
def pseudo_code():
    """Return the names that the pseudo-code defines."""
    return check_spec.load_spec()


@cache
def frame_bytes(folder: str, file: str) -> bytes:
    """Return a vector."""
    return (FIXTURES / folder / file).read_bytes()
