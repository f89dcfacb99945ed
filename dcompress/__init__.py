"""Compressed PyTorch models in one documented file format, ``.dcz``.

The functions here are those of `dcompress.torch`; `dcompress.numpy` has the same without torch. Nothing
heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcompress.calibration.collect import calibrate
    from dcompress.calibration.record import Calibration
    from dcompress.errors import (
        ChecksumError,
        CorruptError,
        DcompressError,
        DcompressWarning,
        DecodeError,
        EncodeError,
        LimitError,
        NotDczError,
        RecipeError,
        TruncatedError,
        UnsupportedError,
        UnsupportedTensorError,
    )
    from dcompress.limits import DecodeLimits
    from dcompress.metric_search import search
    from dcompress.recipe import Recipe
    from dcompress.torch import (
        compress,
        load,
        load_file,
        load_model,
        safe_open,
        salvage,
        save,
        save_file,
        save_model,
    )

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "ChecksumError",
    "CorruptError",
    "DcompressError",
    "DcompressWarning",
    "DecodeError",
    "DecodeLimits",
    "EncodeError",
    "LimitError",
    "NotDczError",
    "Recipe",
    "RecipeError",
    "TruncatedError",
    "UnsupportedError",
    "UnsupportedTensorError",
    "__version__",
    "calibrate",
    "compress",
    "load",
    "load_file",
    "load_model",
    "safe_open",
    "salvage",
    "save",
    "save_file",
    "save_model",
    "search",
]

_TORCH_NAMES = {
    "calibrate",
    "compress",
    "load",
    "load_file",
    "load_model",
    "safe_open",
    "salvage",
    "save",
    "save_file",
    "save_model",
    "search",
}
_TORCH_HOMES = {"calibrate": "calibration.collect", "search": "metric_search"}
_HOMES = {"Calibration": "calibration.record", "DecodeLimits": "limits", "Recipe": "recipe"}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    if name.startswith("__") or name not in __all__:
        raise AttributeError(f"module 'dcompress' has no attribute {name!r}")
    if name in _TORCH_NAMES:
        try:
            home = import_module(f"dcompress.{_TORCH_HOMES.get(name, 'torch')}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ImportError(
                f"dcompress.{name} needs PyTorch: pip install 'dcompress[torch]'; "
                f"without it, dcompress.numpy has the same functions for arrays"
            ) from None
    else:
        home = import_module(f"dcompress.{_HOMES.get(name, 'errors')}")
    return getattr(home, name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
