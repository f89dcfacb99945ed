"""What a decoding kernel returns: OK, or what is wrong with the bytes it was given."""

from __future__ import annotations

OK = 0
SHORT = 1  # a lane needs more bits than it has, or words run out
SURPLUS = 2  # whole bytes or words are left over
PADDING = 3  # the bits that fill the last byte are not zero
OVERRUN = 4  # a zero run passes the end, or lanes do not meet
ILLEGAL = 5  # a code length out of range
UNFINISHED = 6  # a lane does not end in the state that coding starts from
OUT_OF_RANGE = 7  # a symbol stands for a label that does not exist
