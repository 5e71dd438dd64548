"""What the comments of reid.proto say: generated code has none."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from google.protobuf.descriptor import Descriptor, FieldDescriptor

if TYPE_CHECKING:
    # What they are where protobuf is compiled.
    from google._upb import _message

    AnyDescriptor = Descriptor | _message.Descriptor
    AnyField = FieldDescriptor | _message.FieldDescriptor

_COMMENT = re.compile(r"\s*//\s?(.*)")
_BLOCK = re.compile(r"\s*(message|service|oneof) (\w+) \{")
_RPC = re.compile(r"\s*rpc (\w+)\(")
_FIELD = re.compile(r"\s*(?:optional |repeated )?[\w.<>, ]+ (\w+) = \d+;")


@cache
def comments() -> Mapping[str, str]:
    """What is said of each message, service, method and field, by its full name below reid.v1, such as Search.image."""
    said: dict[str, str] = {}
    within: list[str] = []
    pending: list[str] = []
    for line in (files("reidserve.proto.reid.v1") / "reid.proto").read_text(encoding="utf-8").splitlines():
        if found := _COMMENT.match(line):
            pending.append(found[1])
            continue
        if found := _BLOCK.match(line):
            # The fields of a oneof are those of its message.
            within.append("" if found[1] == "oneof" else found[2])
            _keep(said, within, pending)
        elif found := _RPC.match(line) or _FIELD.match(line):
            _keep(said, [*within, found[1]], pending)
        if "}" in line and within:
            within.pop()
        pending = []
    return said


def _keep(said: dict[str, str], names: list[str], comment: list[str]) -> None:
    if comment:
        said[".".join(filter(None, names))] = " ".join(comment)
