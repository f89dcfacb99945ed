"""A device has NumPy and nothing else: everything decodes there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dcompress.numpy as dnp
from dcompress.decode import open_frame
from tests.properties.test_frames import small_model
from tests.vectors import FIXTURES, INVALID, VALID

ROOT = Path(__file__).parents[2]
BLOCKED = ("torch", "scipy", "sklearn", "numba", "llvmlite", "click", "rich", "safetensors", "bitarray")

_BLOCK = f"""
import sys

class Blocker:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {BLOCKED!r} else self._finder.find_spec(name, path, target)

sys.meta_path[:] = [Blocker(finder) for finder in sys.meta_path]
"""

_DECODE = """
import numpy as np
import dcompress.numpy as dnp
from dcompress.decode import open_frame
from dcompress.inspection import read_receipt

path, out = sys.argv[1:]
arrays = dnp.load_file(path)
with dnp.safe_open(path, threads=2) as file:
    for name in file:
        assert file.get_tensor(name).tobytes() == arrays[name].tobytes()
        if arrays[name].ndim:
            assert file.get_slice(name)[0:1].tobytes() == arrays[name][0:1].tobytes()
        shared = file.get_shared(name)
        assert shared is None or dnp.array_from_data(shared.gather()).tobytes() == arrays[name].tobytes()
with open_frame(path) as reader:
    reader.verify_sections()
np.savez(out, **{str(place): array for place, array in enumerate(arrays.values())})
"""

_REFUSE = """
import dcompress.numpy as dnp
from dcompress.errors import DecodeError

try:
    dnp.load_file(sys.argv[1])
except DecodeError as error:
    print(error.rule)
"""


_VECTORS = """
import hashlib, json
from dcompress.decode import open_frame
from dcompress.errors import DecodeError
from dcompress.limits import DecodeLimits

for folder, entries in json.load(sys.stdin).items():
    for entry in entries:
        path = f"{sys.argv[1]}/{folder}/{entry['file']}"
        try:
            with open_frame(path, limits=DecodeLimits(**entry.get("limits", {}))) as reader:
                tensors = reader.read_all()
            found = [hashlib.sha256(tensor.words.tobytes()).hexdigest() for tensor in tensors.values()]
        except DecodeError as error:
            found = error.rule
        print(json.dumps([f"{folder}/{entry['file']}", found]))
"""


def run(code, *arguments, stdin=None):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _BLOCK + code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        input=stdin,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    frame, _ = small_model()
    path = tmp_path_factory.mktemp("device") / "model.dcz"
    path.write_bytes(frame)
    return path


def test_all_coders_decode_with_numpy_alone(model, tmp_path):
    out = tmp_path / "out.npz"
    done = run(_DECODE, model, out)
    assert done.returncode == 0, done.stderr
    arrays = dnp.load_file(model)
    with np.load(out) as stored:
        for place, array in enumerate(arrays.values()):
            assert stored[str(place)].tobytes() == array.tobytes()
    with open_frame(model) as reader:
        assert len({record.coder for record in reader.directory.tensors.values()}) == 7


def test_damage_is_found_with_numpy_alone(model, tmp_path):
    bad = tmp_path / "bad.dcz"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    done = run(_REFUSE, bad)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_vectors_are_read_with_numpy_alone():
    entries = {"valid": VALID, "invalid": [entry for entry in INVALID if "read" not in entry]}
    done = run(_VECTORS, FIXTURES, stdin=json.dumps(entries))
    assert done.returncode == 0, done.stderr
    found = dict(map(json.loads, done.stdout.splitlines()))
    for entry in entries["valid"]:
        assert found.pop(f"valid/{entry['file']}") == [tensor["sha256"] for tensor in entry["tensors"]]
    for entry in entries["invalid"]:
        assert found.pop(f"invalid/{entry['file']}") in (entry["rule"], entry.get("or"))
    assert not found


def test_the_block_blocks():
    for name in BLOCKED:
        assert f"No module named '{name}'" in run(f"import {name}").stderr


def test_nothing_heavy_is_imported_until_it_is_used():
    code = """
import sys
import dcompress, dcompress.numpy
heavy = {"torch", "scipy", "sklearn", "numba", "llvmlite", "click", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_the_torch_functions_say_what_to_install():
    done = run("import dcompress\ndcompress.load_file")
    assert "ImportError: dcompress.load_file needs PyTorch: pip install 'dcompress[torch]'" in done.stderr
