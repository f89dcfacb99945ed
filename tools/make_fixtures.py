"""Write the small synthetic models in fixtures/models: every dtype and odd shape.

    python tools/make_fixtures.py            write them
    python tools/make_fixtures.py --check    compare with what is there; exit 1 if anything differs

``every_dtype.safetensors`` holds all dtypes that safetensors knows. ``odd_shapes.npz`` holds what breaks
careless code: empty, 0-d, long names, one value, NaN payloads, zeros of both signs.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import numpy as np

from dcompress.constants import DTYPES, DType
from dcompress.npz_file import write_npz
from dcompress.numpy import data_from_array
from dcompress.safetensors_file import write_safetensors
from dcompress.stages import TensorData, tensor_specs, word_dtype

FOLDER = Path(__file__).parent.parent / "fixtures" / "models"


def pattern(dtype: DType, shape: tuple[int, ...], seed: int) -> TensorData:
    """Return a tensor of bits that a seed decides; bool holds 0 and 1 only."""
    n_words = int(np.prod(shape)) * dtype.words_per_element
    bits = np.random.default_rng(seed).integers(0, 256, n_words * dtype.word_bytes, dtype=np.uint8)
    words = bits.view(word_dtype(dtype.word_bytes))
    return TensorData(dtype, shape, words & words.dtype.type(1) if dtype.name == "bool" else words)


def every_dtype() -> bytes:
    """Return a safetensors file with each dtype in three shapes."""
    tensors = {}
    for dtype in DTYPES:
        if not dtype.safetensors_name:
            continue
        for name, shape in {"matrix": (6, 10), "scalar": (), "empty": (0, 4)}.items():
            if dtype.name == "float4_e2m1fn_x2" and not shape:
                continue  # safetensors counts its 4-bit elements, two to a byte: 0-d has none
            tensors[f"{dtype.name}.{name}"] = pattern(dtype, shape, dtype.code)
    out = io.BytesIO()
    write_safetensors(out, tensor_specs(tensors), tensors, metadata={"made by": "tools/make_fixtures.py"})
    return out.getvalue()


def odd_shapes() -> bytes:
    """Return an npz file of awkward arrays."""
    nan = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0, 1, 0x7F800000], np.uint32)
    arrays = {
        "0-d": np.array(2.5, np.float32),
        "empty": np.zeros((3, 0, 2), np.float32),
        "one element": np.ones((1, 1, 1, 1), np.float64),
        "one value": np.full((41, 43), -0.25, np.float32),
        "all zeros": np.zeros((30, 50), np.float32),
        "nan payloads, -0.0, subnormal": nan.view(np.float32),
        "prime": np.arange(8191, dtype=np.float32) / 7,
        "eight dimensions": np.arange(256, dtype=np.int16).reshape((2,) * 8),
        "long name " + "x" * 500: np.arange(5, dtype=np.int64) - 2,
        "ünï ☃": np.array([True, False, True]),
        "sparse": np.where(np.arange(5000) % 37 == 0, np.arange(5000) % 5 + 1, 0).astype(np.float32),
    }
    tensors = {name: data_from_array(name, array) for name, array in arrays.items()}
    out = io.BytesIO()
    write_npz(out, tensor_specs(tensors), tensors)
    return out.getvalue()


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Compare, write nothing.")
def main(check: bool) -> None:
    """Write or compare the fixtures."""
    for name, content in {"every_dtype.safetensors": every_dtype(), "odd_shapes.npz": odd_shapes()}.items():
        path = FOLDER / name
        if not check:
            path.write_bytes(content)
            print(f"wrote {path.name}, {len(content)} bytes")
        elif not path.is_file() or path.read_bytes() != content:
            sys.exit(f"{path.name} differs from what tools/make_fixtures.py makes")


if __name__ == "__main__":
    main()
