from __future__ import annotations

import dataclasses

import pytest

from dcompress.limits import DecodeLimits


def test_output_may_be_four_gigabytes_however_small_the_frame():
    assert DecodeLimits().output_bytes(100) == 1 << 32


def test_output_grows_with_the_frame():
    frame_bytes = 1 << 30
    assert DecodeLimits().output_bytes(frame_bytes) == 4096 * frame_bytes


@pytest.mark.parametrize("limit", [0, 1, 1 << 60])
def test_a_given_limit_is_taken_as_it_is(limit):
    assert DecodeLimits(max_output_bytes=limit).output_bytes(1 << 40) == limit


def test_limits_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeLimits().max_rank = 99
