"""The settings of a recipe's rules: names, ranges, spelling on a command line. Standard library only."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dcompress.constants import TRELLIS_STATES
from dcompress.errors import RecipeError

__all__ = [
    "DEFAULT_EFFORT",
    "EFFORT_STATES",
    "MAX_BITS",
    "MAX_CENTROIDS",
    "MAX_EFFORT",
    "PRUNE_KEYS",
    "RATE_KEYS",
    "SHARE_KEYS",
    "SIZE_KEYS",
    "STATES",
    "check_effort",
    "check_settings",
    "near",
    "parse_n_m",
    "parse_set",
    "share_kind",
]

MAX_CENTROIDS = 4095  # one label of the format's 4,096 is kept for the zero
MAX_BITS = 12
DEFAULT_EFFORT = 6  # of 1, fast, to MAX_EFFORT, smallest
MAX_EFFORT = 9

STATES = TRELLIS_STATES  # of the trellis of method "rate"; 0 is none
# By effort, unless a recipe says. A trellis needs the context coder, which 4 is the first to try.
EFFORT_STATES = {1: 0, 2: 0, 3: 0, 4: 4, 5: 8, 6: 8, 7: 8, 8: 32, 9: 64}

PRUNE_KEYS: tuple[str, ...] = ("sparsity", "threshold", "quality", "n_m")
SIZE_KEYS: tuple[str, ...] = ("bits", "centroids")
RATE_KEYS: tuple[str, ...] = ("step", "slope", "states")
_SHARE_KINDS = {
    "bits": "sized",
    "centroids": "sized",
    "codebook": "given",
    "integer_bits": "fixed_point",
    "fraction_bits": "fixed_point",
    **dict.fromkeys(RATE_KEYS, "rate"),
}
SHARE_KEYS = ("method", *_SHARE_KINDS)  # these ask for sharing
_CHOICES = {
    "method": ("kmeans", "uniform", "fixed_point", "given", "rate"),
    "init": ("linear", "density", "random", "k-means++"),
    "codebook_dtype": ("float16",),
}
_INTEGERS = {  # setting -> smallest and largest value
    "bits": (1, MAX_BITS),
    "centroids": (1, MAX_CENTROIDS),
    "integer_bits": (-64, 64),
    "fraction_bits": (-64, 64),
    "groups": (1, 1 << 20),
    "seed": (0, (1 << 32) - 1),
}
_NUMBERS = {  # setting -> what it must be, and its largest value
    "sparsity": ("a fraction from 0 to 1", 1.0),
    "threshold": ("a number, at least 0", math.inf),
    "quality": ("a number, at least 0", math.inf),
    "step": ("a number above 0", math.inf),
    "slope": ("a number, at least 0", math.inf),
}
_SETTINGS = (*_NUMBERS, "n_m", "scope", *_INTEGERS, "states", *_CHOICES, "codebook", "lossless")


def share_kind(settings: Mapping[str, Any]) -> str:
    """Return the kind of sharing that settings ask for: sized, given, fixed_point, rate, or "" for none."""
    for key, kind in _SHARE_KINDS.items():
        if key in settings:
            return kind
    method = settings.get("method", "")
    return "sized" if method in ("kmeans", "uniform") else str(method)


def check_effort(effort: object) -> None:
    """Raise unless an effort is a whole number from 1 to 9."""
    if not isinstance(effort, int) or isinstance(effort, bool) or not 1 <= effort <= MAX_EFFORT:
        raise RecipeError(f"effort must be a whole number from 1, fast, to {MAX_EFFORT}, not {effort!r}")


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise unless every setting is known, of the right type and in range, and none excludes another."""
    prefix = f"{where}: " if where else ""
    for key, value in settings.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if key in _NUMBERS:
            wanted, most = _NUMBERS[key]
            good = number and 0 <= value <= most and math.isfinite(value) and (value > 0 or key != "step")
        elif key in _INTEGERS:
            low, high = _INTEGERS[key]
            wanted = f"a whole number from {low} to {high}"
            good = number and isinstance(value, int) and low <= value <= high
        elif key in _CHOICES:
            wanted, good = "one of " + ", ".join(_CHOICES[key]), value in _CHOICES[key]
        elif key == "states":
            wanted = f"one of {', '.join(map(str, STATES))}"
            good = number and isinstance(value, int) and value in STATES
        elif key in _TEXTS:
            wanted, check = _TEXTS[key]
            good = isinstance(value, str) and check(value)
        elif key == "codebook":
            wanted = f"a list of 1 to {MAX_CENTROIDS} finite numbers"
            good = isinstance(value, (list, tuple)) and 1 <= len(value) <= MAX_CENTROIDS
            good = good and all(type(item) in (int, float) and math.isfinite(item) for item in value)
        elif key == "lossless":
            wanted, good = "true or false", isinstance(value, bool)
        else:
            hint = near(key, _SETTINGS) or f"; the settings are {', '.join(_SETTINGS)}"
            raise RecipeError(f"{prefix}unknown setting {key!r}{hint}")
        if not good:
            raise RecipeError(f"{prefix}{key} must be {wanted}, not {value!r}")
    for family in (PRUNE_KEYS, SIZE_KEYS):
        both = [key for key in family if key in settings]
        if len(both) > 1:
            raise RecipeError(f"{prefix}give only one of {', '.join(both)}")
    share = [key for key in SHARE_KEYS if key in settings]
    if len({share_kind({key: settings[key]}) for key in share}) > 1:
        raise RecipeError(f"{prefix}{', '.join(share)} do not go together")
    if settings.get("lossless") and len(settings) > 1:
        raise RecipeError(f"{prefix}lossless excludes every other setting")


def parse_set(text: str) -> tuple[str, dict[str, Any], str]:
    """Return pattern, settings and origin of a ``PATTERN:key=value,...`` option."""
    origin = f"--set {text!r}"
    # The last colon that a setting follows: patterns may have colons, and so has N:M.
    parts = re.fullmatch(r"(.+):\s*([a-z_]+\s*(?:[=,].*)?)", text, re.DOTALL)
    if parts is None:
        raise RecipeError(f"{origin}: write it as PATTERN:setting=value,setting=value")
    pattern, assignments = parts.groups()
    settings: dict[str, Any] = {}
    for assignment in assignments.split(","):
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals and key != "lossless":
            raise RecipeError(f"{origin}: {key!r} has no value; write {key}=value")
        if key in settings:
            raise RecipeError(f"{origin}: {key} is given twice")
        settings[key] = _parse_value(key, value if equals else "true")
    check_settings(settings, origin)
    return pattern, settings, origin


def parse_n_m(text: str) -> tuple[int, int]:
    """Return N and M of a text such as "2:4"; (0, 0) if it is none, or not 0 < N < M."""
    parts = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text)
    n, m = (int(part) for part in parts.groups()) if parts else (0, 0)
    return (n, m) if 0 < n < m else (0, 0)


_TEXTS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "scope": ("'tensor', 'global' or the name of a group", bool),
    "n_m": ("N:M, as in 2:4: of every M weights N are kept", lambda text: parse_n_m(text) != (0, 0)),
}


def _parse_value(key: str, text: str) -> Any:
    """Return the value of a setting from its text; what does not parse is left for the check to name."""
    if key == "codebook":
        return [_parse_value("threshold", part) for part in text.split("/")]
    if key == "lossless":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return int(text) if key in (*_INTEGERS, "states") else float(text) if key in _NUMBERS else text
    except ValueError:
        return text


def near(word: str, names: Iterable[str], n: int = 1) -> str:
    """Return a hint with the ``n`` names most like a word, or nothing."""
    found = difflib.get_close_matches(word.strip("*?"), list(names), n=n, cutoff=0.55)
    return f"; did you mean {', '.join(repr(name) for name in found)}?" if found else ""
