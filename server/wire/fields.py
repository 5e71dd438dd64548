"""Fields: how many a message has, counted before it is parsed, which takes up to 50 times its bytes."""

import contextlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from reidserve.errors import MessageTooLargeError

if TYPE_CHECKING:
    # What it is where protobuf is compiled.
    from google._upb import _message

    _Kind = Descriptor | _message.Descriptor

MOST_FIELDS = 50_000
"""How many fields a message may have, with those of the messages in it: more than all that may be deleted or compared
with at once. The texts of a Choice are not among them: they take 8 times their bytes at most."""

SMALL = 2**16
"""A message of so many bytes takes little, whatever it has."""

_Message = TypeVar("_Message", bound=Message)

_VARINT_BITS = 70


def parse(kind: type[_Message], raw: bytes) -> _Message:
    """The message that bytes are.

    Raises:
        MessageTooLargeError: it has more than MOST_FIELDS fields.
        DecodeError: they are none.
    """
    if len(raw) > SMALL and has_more_fields(raw, kind, MOST_FIELDS):
        raise MessageTooLargeError(
            f"a message may have {MOST_FIELDS:,} fields, with those of the messages in it: send less at a time"
        )
    return kind.FromString(raw)


def has_more_fields(raw: bytes, kind: type[Message], most: int) -> bool:
    """Whether a message has more fields than that, as far as it is one."""
    count = 0
    parts = [(0, len(raw), _messages(kind.DESCRIPTOR))]
    while parts:
        place, end, messages = parts.pop()
        # A part that ends too soon is no message, which parsing says, but not before it has parsed those before it.
        with contextlib.suppress(IndexError):
            while place < end:
                count += 1
                if count > most:
                    return True
                tag, place = _varint(raw, place)
                place, start = _behind(raw, place, tag & 7)
                if tag & 7 == 2 and (within := messages.get(tag >> 3)) is not None:
                    parts.append((start, min(place, end), _messages(within)))
    return False


def _behind(raw: bytes, place: int, wire_type: int) -> tuple[int, int]:
    """Where a field's value ends and where it begins, of a value that begins with its length behind that."""
    match wire_type:
        case 0:
            return _varint(raw, place)[1], place
        case 1:
            return place + 8, place
        case 2:
            length, start = _varint(raw, place)
            return start + length, start
        case 5:
            return place + 4, place
        case _:  # a group's begin or end, whose fields follow
            return place, place


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        byte = raw[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise IndexError("no varint is longer")


@cache
def _messages(kind: "_Kind") -> Mapping[int, "_Kind"]:
    """The fields of a message that are messages themselves, by number; those of texts alone are not looked into."""
    found = {field.number: field.message_type for field in kind.fields if field.message_type is not None}
    return {
        number: within
        for number, within in found.items()
        if any(field.type != FieldDescriptor.TYPE_STRING for field in within.fields)
    }
