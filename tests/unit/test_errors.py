from __future__ import annotations

import pickle

import pytest

from dcompress import errors
from dcompress.errors import DcompressError, DcompressWarning, DecodeError, EncodeError

KINDS = [getattr(errors, name) for name in errors.__all__]
DECODE_KINDS = [kind for kind in KINDS if issubclass(kind, DecodeError)]
DETAILS = {"rule": "HUF-02", "offset": 17, "tensor": "fc.weight", "hint": "copy it again"}


def test_every_error_is_of_the_one_tree():
    for kind in KINDS:
        assert issubclass(kind, UserWarning if kind is DcompressWarning else DcompressError)


def test_encode_and_decode_errors_are_told_apart():
    assert not issubclass(DecodeError, EncodeError)
    assert not issubclass(EncodeError, DecodeError)
    # A newer file is not a damaged one, and a limit is the reader's own.
    assert not issubclass(errors.UnsupportedError, errors.CorruptError)
    assert not issubclass(errors.LimitError, errors.CorruptError)
    assert issubclass(errors.ChecksumError, errors.CorruptError)


def test_exit_codes_of_the_tree():
    codes = {kind.__name__: kind.exit_code for kind in KINDS if kind is not DcompressWarning}
    assert all(code > 0 for code in codes.values())
    assert codes["CorruptError"] == codes["ChecksumError"] == codes["TruncatedError"] == codes["NotDczError"]
    assert (
        len({codes["EncodeError"], codes["CorruptError"], codes["UnsupportedError"], codes["LimitError"]})
        == 4
    )


@pytest.mark.parametrize("kind", DECODE_KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_decode_errors_survive_pickling(kind, protocol):
    error = kind("bad code", **DETAILS)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert str(again) == str(error)
    assert {name: getattr(again, name) for name in DETAILS} == DETAILS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, EncodeError)])
def test_encode_errors_survive_pickling(kind):
    again = pickle.loads(pickle.dumps(kind("no such pattern")))
    assert type(again) is kind
    assert str(again) == "no such pattern"


def test_details_added_later_survive_pickling():
    error = DecodeError("bad code")
    error.tensor, error.offset = "w", 0
    again = pickle.loads(pickle.dumps(error))
    assert (again.tensor, again.offset) == ("w", 0)


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({}, "bad code"),
        ({"rule": "HUF-02"}, "bad code (rule HUF-02)"),
        ({"offset": 0}, "bad code (offset 0)"),
        ({"tensor": ""}, "bad code (tensor '')"),
        ({"hint": "upgrade"}, "bad code; upgrade"),
        (DETAILS, "bad code (tensor 'fc.weight', offset 17, rule HUF-02); copy it again"),
    ],
)
def test_messages_say_what_is_known(details, text):
    assert str(DecodeError("bad code", **details)) == text
