"""Who may import whom. A module imports from lower layers, and from those siblings that stand here."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dcompress"

_JITS = {
    f"kernels.jit_{name}"
    for name in (
        "context",
        "feedback",
        "modelling",
        "runs",
        "side",
        "side_writing",
        "symbols",
        "trellis",
        "words",
    )
}

# What runs a model to see what flows into its layers.
_CALIBRATION = {
    f"calibration.{name}"
    for name in ("collect", "collector", "columns", "inventory", "lockstep", "readers", "recurrent")
} | {f"calibration.{name}" for name in ("restoring", "sensitivity", "sequence", "sums")}

LAYERS = (
    # Numbers, errors, caps: standard library only.
    {"errors", "constants", "limits"},
    # What everything else is made of.
    {"decibels", "stages", "cursor", "threads", "source", "profiles"}
    | {
        "kernels",
        "kernels.status",
        "kernels.reference",
        "kernels.reference_context",
        "kernels.reference_symbols",
    }
    | {"kernels.feedback", "kernels.side", "kernels.side_writing", "kernels.trellis", "kernels.jit"}
    | _JITS,
    # Stage 3 and the container: they know nothing of each other.
    {"checksum", "values"}
    | {"coding"}
    | {
        f"coding.{name}"
        for name in (
            "base",
            "classes",
            "context",
            "huffman",
            "labels",
            "lanes",
            "plain",
            "range_coder",
            "symbols",
            "table_set",
            "tables",
            "zero_run",
        )
    }
    | {"container", "container.reader", "container.records", "container.writer"},
    # Frames in; policy, stages 1 and 2; model files of other kinds.
    {"decode", "jobs", "inspection"}
    | {"recipe", "rules", "presets", "settings", "solve", "crossing", "targets"}
    | {"floats", "prune", "prune_feedback", "prune_rules", "kmeans", "share", "matrices", "prices"}
    | {"blas", "feedback", "feeding", "rate", "rate_groups"}
    | {"compression", "choice", "scopes", "step_weights"}
    | {"grid", "views", "clusters", "modelling", "packing", "recognition"}
    | {"atomic", "safetensors_file", "npz_file", "torch_file", "checkpoint", "model_file"}
    | {"evaluation", "calibration", "calibration.moments", "calibration.moments_file", "calibration.record"}
    | _CALIBRATION,
    # Frames out; open files.
    {"encode", "read_back", "step_search", "curve", "frame_file", "handle", "lazy", "rescue"},
    # Faces.
    {"numpy", "torch", "metric_search", "train", "report", "compare", "cli", "__init__", "__main__"},
)

_CODERS = {"coding.base", "coding.huffman", "coding.lanes", "coding.range_coder", "coding.tables"}
SIBLINGS = {
    "kernels": {"kernels.reference", "kernels.jit"},
    "kernels.reference": {
        f"kernels.{name}"
        for name in ("feedback", "reference_context", "reference_symbols", "side", "side_writing")
    }
    | {"kernels.status", "kernels.trellis"},
    "kernels.reference_context": {"kernels.status", "kernels.trellis"},
    "kernels.reference_symbols": {"kernels.status"},
    "kernels.side": {"kernels.status"},
    "kernels.side_writing": {"kernels.side"},
    "kernels.jit": _JITS,
    "kernels.jit_context": {"kernels.reference_context", "kernels.status"},
    "kernels.jit_modelling": {"kernels.reference_context"},
    "kernels.jit_feedback": {"kernels.trellis"},
    "kernels.jit_trellis": {"kernels.trellis"},
    "kernels.feedback": {"kernels.trellis"},
    "kernels.jit_side": {"kernels.side", "kernels.status"},
    "kernels.jit_side_writing": {"kernels.side", "kernels.side_writing"},
    "kernels.jit_symbols": {"kernels.reference", "kernels.status"},
    "kernels.jit_runs": {"kernels.jit_symbols", "kernels.jit_words", "kernels.reference", "kernels.status"},
    "coding": {f"coding.{name}" for name in ("base", "context", "labels", "plain", "table_set", "zero_run")},
    "coding.tables": {"coding.huffman", "coding.range_coder"},
    "coding.base": {"coding.range_coder", "coding.tables"},
    "coding.table_set": {"coding.range_coder", "coding.symbols"},
    "coding.classes": {"coding.range_coder", "coding.symbols"},
    "coding.context": {"coding.base", "coding.classes", "coding.range_coder"}
    | {"coding.symbols", "coding.table_set"},
    "coding.labels": _CODERS,
    "coding.plain": _CODERS,
    "coding.zero_run": _CODERS,
    "container.reader": {"checksum", "container.records"},
    "container.writer": {"checksum"},
    "decode": {"jobs"},
    "inspection": {"decode"},
    "rules": {"settings"},
    "targets": {"settings"},
    "recipe": {"presets", "rules", "settings"},
    "prune": {"floats"},
    "kmeans": {"blas", "floats"},
    "share": {"feedback", "feeding", "floats", "kmeans", "prune"},
    "feedback": {"blas", "calibration.moments"},
    "feeding": {"blas", "feedback", "prices"},
    "prune_feedback": {"blas", "feedback"},
    "views": {"grid"},
    "modelling": {"clusters", "grid", "prices", "views"},
    "packing": {"choice", "grid", "modelling", "recognition", "settings", "views"},
    "recognition": {"floats"},
    "rate": {"feedback", "feeding", "floats", "modelling", "prices"},
    "rate_groups": {"feedback", "floats", "grid", "prices", "rate", "rules", "settings"},
    "prune_rules": {"calibration", "feedback", "floats", "prune", "prune_feedback", "rules", "settings"},
    "scopes": {"floats", "prune", "rules"},
    "compression": {"calibration", "feedback", "floats", "prune_rules", "rate_groups", "recipe"}
    | {"scopes", "settings", "share", "step_weights"},
    "step_weights": {"rules"},
    "matrices": {"floats"},
    "npz_file": {"safetensors_file"},
    "torch_file": {"checkpoint", "npz_file", "safetensors_file"},
    "model_file": {"atomic", "npz_file", "safetensors_file", "torch_file"},
    "step_search": {"encode"},
    "curve": {"step_search"},
    "frame_file": {"encode", "read_back", "step_search"},
    "read_back": {"encode"},
    "rescue": {"lazy"},
    "calibration": {"calibration.moments", "calibration.record"},
    "calibration.moments_file": {"calibration.moments", "safetensors_file"},
    "calibration.record": {"atomic", "calibration.moments", "calibration.moments_file", "safetensors_file"},
    **{
        name: _CALIBRATION
        | {"calibration.moments", "calibration.record", "checkpoint", "safetensors_file"}
        | {"compression", "rate_groups", "recipe", "rules", "settings"}
        for name in _CALIBRATION
    },
    "metric_search": {"torch"},
    "__init__": {"metric_search", "torch"},
    "__main__": {"cli"},
    "train": {"report", "train"},
    "cli": {"__init__", "cli", "compare", "report"},
}

# Who may import what from outside, beside the standard library.
OUTSIDERS = {
    "torch": {"checkpoint", "evaluation", "metric_search", "torch_file", "torch", "train"} | _CALIBRATION,
    "torch_pruning": {"train"},
    "torchao": {"train"},
    "sklearn": {"share", "kmeans", "train"},
    "threadpoolctl": {"blas", "kmeans"},
    "numba": _JITS,
    "llvmlite": {"kernels.jit_symbols"},
    "click": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"cli", "train"},
    "tomli": {"recipe", "train"},
}
ONLY_WITHIN_FUNCTIONS = {"sklearn", "torch_pruning", "torchao", "threadpoolctl", "rich", "matplotlib"}
WITHOUT_NUMPY = LAYERS[0] | {
    *(
        "recipe",
        "rules",
        "presets",
        "settings",
        "solve",
        "crossing",
        "targets",
        "cursor",
        "threads",
        "atomic",
    ),
    "step_weights",
}

# What a device needs to decode: NumPy alone, whatever a function may import when it is called.
DEVICE_SET = (
    {"errors", "constants", "limits", "decibels", "stages", "cursor", "threads", "source", "checksum"}
    | {"kernels", "kernels.status", "kernels.reference", "kernels.reference_context"}
    | {"kernels.reference_symbols", "kernels.side_writing"}
    | {"kernels.feedback", "kernels.side", "kernels.trellis", "decode", "jobs", "inspection", "handle"}
    | {name for name in LAYERS[2] if name.startswith(("coding", "container"))}
)

MOST_LINES = 400


class Import(NamedTuple):
    """One imported module, and whether importing the importer imports it."""

    name: str
    at_once: bool


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def home(name):
    """Return the entry of the table that a module belongs to: its own, or that of its package."""
    while name and not any(name in layer for layer in LAYERS):
        name = name.rpartition(".")[0]
    return name


def layer_of(name):
    return next((number for number, layer in enumerate(LAYERS) if home(name) in layer), None)


class _Finder(ast.NodeVisitor):
    def __init__(self):
        self.found = set()
        self._depth = 0

    def visit_FunctionDef(self, node):
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_If(self, node):
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node):
        for alias in node.names:
            self.found.add(Import(alias.name, not self._depth))

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            is_module = whole.removeprefix("dcompress.") in FILES
            self.found.add(Import(whole if is_module else node.module, not self._depth))


@cache
def imports_of(name):
    finder = _Finder()
    finder.visit(ast.parse(FILES[name].read_text(encoding="utf-8")))
    return frozenset(finder.found)


def inner_imports(name):
    """Return the modules of this package that a module imports."""
    return {
        Import(one.name.removeprefix("dcompress").removeprefix(".") or "__init__", one.at_once)
        for one in imports_of(name)
        if one.name.split(".")[0] == "dcompress"
    }


def outer_imports(name):
    """Return the packages from outside that a module imports."""
    return {
        Import(one.name.split(".")[0], one.at_once)
        for one in imports_of(name)
        if one.name.split(".")[0] not in {"dcompress", *sys.stdlib_module_names}
    }


@pytest.mark.parametrize("name", FILES)
def test_every_module_has_its_layer(name):
    assert layer_of(name) is not None, f"add {name} to LAYERS"


@pytest.mark.parametrize("name", FILES)
def test_modules_import_from_below_and_from_known_siblings(name):
    for one in inner_imports(name):
        own, other = layer_of(name), layer_of(one.name)
        allowed = other < own or home(one.name) in SIBLINGS.get(home(name), ())
        assert allowed, f"{name} (layer {own}) imports {one.name} (layer {other})"


@pytest.mark.parametrize("name", FILES)
def test_modules_import_from_outside_what_they_may(name):
    for package, at_once in outer_imports(name):
        if package == "numpy":
            assert home(name) not in WITHOUT_NUMPY
            continue
        assert home(name) in OUTSIDERS.get(package, ()), f"{name} imports {package}"
        assert not (at_once and package in ONLY_WITHIN_FUNCTIONS), f"{name} imports {package} at once"


def test_stage_three_and_the_container_know_nothing_of_each_other():
    for name in FILES:
        for one in inner_imports(name):
            pair = {name.split(".")[0], one.name.split(".")[0]}
            assert pair != {"coding", "container"}


def test_the_table_names_nobody_twice():
    listed = [name for layer in LAYERS for name in layer]
    assert len(listed) == len(set(listed))
    assert {name for pair in SIBLINGS.items() for name in (pair[0], *pair[1])} <= set(listed)


def test_no_imports_go_in_circles():
    seen, open_ones = set(), []

    def visit(name):
        assert name not in open_ones, " -> ".join([*open_ones, name])
        if name in seen:
            return
        open_ones.append(name)
        for one in inner_imports(name):
            # A package is there before its modules: asking it for a name is no circle.
            if (
                one.at_once
                and one.name in FILES
                and not name.startswith(f"{one.name}.")
                and one.name != "__init__"
            ):
                visit(one.name)
        open_ones.pop()
        seen.add(name)

    for name in FILES:
        visit(name)


@pytest.mark.parametrize("name", sorted(DEVICE_SET))
def test_the_device_set_needs_numpy_alone(name):
    assert {one.name for one in inner_imports(name)} <= DEVICE_SET | {"kernels.jit"}
    assert {one.name for one in outer_imports(name)} <= {"numpy"}
    for one in inner_imports(name):
        assert one.name != "kernels.jit" or not one.at_once


@pytest.mark.parametrize(
    "path",
    [path for folder in ("dcompress", "tools") for path in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_source_file_is_too_long(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MOST_LINES, f"{n_lines} lines: split it"
