"""Requests of HTTP to messages of reid.v1, and messages to JSON."""

import difflib
import json
import math
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from starlette.requests import Request

from reidserve.errors import ContentTypeError, MessageError, PermissionDeniedError
from reidserve.server.call import Arrival, join_metadata
from reidserve.server.http.routes import Route

if TYPE_CHECKING:
    from reidserve.server.http.comments import AnyDescriptor, AnyField

TIMEOUT, GRPC_TIMEOUT = "x-timeout", "grpc-timeout"
"""The headers that say how long an answer is waited for: seconds, or as gRPC has it."""

_OF_GRPC = re.compile("([0-9]{1,8})([HMSmun])")
_LONGEST_SECONDS = 86_400.0  # what a client writes where it means no deadline is beyond a day
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def arrival_of(request: Request) -> Arrival:
    """What is known of a request before it is read; a deadline that does not read is none (`check_timeout`)."""
    metadata = join_metadata(request.headers.items())
    seconds = _timeout(metadata)
    deadline = time.monotonic() + seconds if seconds is not None and 0 < seconds < _LONGEST_SECONDS else None
    return Arrival(metadata, _peer(request), "http", deadline)


def check_timeout(arrival: Arrival) -> None:
    """See that the deadline that a caller set reads.

    Raises:
        MessageError: it does not.
    """
    seconds = _timeout(arrival.metadata)
    # Written so that NaN fails.
    if seconds is not None and not 0 < seconds < math.inf:
        raise MessageError(f"{TIMEOUT} must be seconds above 0, such as 2.5, and {GRPC_TIMEOUT} such as 2500m")


def check_site(request: Request) -> None:
    """See that a browser does not ask for a page of another site, which could change what it cannot see.

    Raises:
        PermissionDeniedError: it does.
    """
    if request.method != "GET" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise PermissionDeniedError(
            "a page of another site asks in its reader's name: ask from this server's own pages"
        )


def read_message(request: Request, route: Route, body: bytes, message: Message) -> None:
    """Fill a message with what a request says: in its body, in its query and in its path.

    Raises:
        ContentTypeError: the body is neither JSON nor, where an image may be sent, an image.
        MessageError: it is no such message, or says something twice.
    """
    takes_image = "image" in message.DESCRIPTOR.fields_by_name
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if takes_image and kind.startswith("image/"):
        message.image = body  # type: ignore[attr-defined]
    elif body and kind == "application/json":
        read_json(body, message)
    elif body:
        wanted = "application/json or image/jpeg, png, webp or bmp" if takes_image else "application/json"
        raise ContentTypeError(f"the body must be of {wanted}, got {kind[:80] or 'no Content-Type'}")
    for name in dict.fromkeys(request.query_params):
        _say(message, name, request.query_params.getlist(name))
    for part, name in route.parts.items():
        _say(message, name, [request.path_params[part]])


def read_json(body: bytes, message: Message) -> None:
    """Fill a message with its JSON (protobuf's mapping: bytes are base64, names of either spelling).

    Raises:
        MessageError: it is no JSON of such a message.
    """
    what = f"the body is no {message.DESCRIPTOR.full_name}"
    try:
        said = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{what}, for it is no JSON: {_line(error)}") from error
    if not isinstance(said, dict):
        raise MessageError(f"{what}: expected a JSON object")
    try:
        _take_masks(said, message)
        json_format.ParseDict(said, message)
    except json_format.ParseError as error:
        raise MessageError(f"{what}: {_line(error)}") from error


def write_json(message: Message) -> bytes:
    """A message as JSON (protobuf's mapping), what has its default included."""
    said = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    return json.dumps(said, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(pairs)
    if len(said) < len(pairs):
        raise ValueError("a duplicate name in one object")
    return said


def _take_masks(said: dict[str, Any], message: Message) -> None:
    """Take a FieldMask out of what is said: protobuf would respell `attributes.doorNumber` to another attribute."""
    for field in message.DESCRIPTOR.fields:
        if _is_mask(field):
            for name in {field.name, field.json_name} & said.keys():
                _set_mask(message, field, said.pop(name))


def _is_mask(field: "AnyField") -> bool:
    return field.message_type is not None and field.message_type.full_name == FieldMask.DESCRIPTOR.full_name


def _set_mask(message: Message, field: "AnyField", text: object) -> None:
    if not isinstance(text, str):
        raise MessageError(f"{field.json_name} must be names of fields with commas between them, in one text")
    getattr(message, field.name).paths.extend(path for path in text.split(",") if path)


def _timeout(metadata: Mapping[str, str]) -> float | None:
    if (given := metadata.get(TIMEOUT)) is not None:
        try:
            return float(given)
        except ValueError:
            return math.nan
    if (given := metadata.get(GRPC_TIMEOUT)) is not None:
        found = _OF_GRPC.fullmatch(given)
        return math.nan if found is None else int(found[1]) * _UNITS[found[2]]
    return None


def _peer(request: Request) -> str:
    if request.client is None:
        return "unknown"
    host, port = request.client
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _say(message: Message, name: str, values: list[str]) -> None:
    """Set what a query or a path says of a field; a name such as rerank.k1 leads into a message."""
    *way, last = name.split(".")
    for step in way:
        field = _field(message.DESCRIPTOR, step, name)
        if field.message_type is None or field.is_repeated:
            raise MessageError(f"{name}: {step} has no fields")
        message = getattr(message, field.name)
    field = _field(message.DESCRIPTOR, last, name)
    if any(said.name == field.name for said, _ in message.ListFields()):
        raise MessageError(f"{name} is said in two places: the body, the query and the path must not say the same")
    if len(values) > 1 and not field.is_repeated:
        raise MessageError(f"{name} is said {len(values)} times in the query")
    if _is_mask(field):
        _set_mask(message, field, values[0])
        return
    said = [_value(field, value) for value in values]
    try:
        json_format.ParseDict({field.name: said if field.is_repeated else said[0]}, message)
    except json_format.ParseError as error:
        raise MessageError(f"{name}: {_line(error)}") from error


def _field(descriptor: "AnyDescriptor", name: str, whole: str) -> "AnyField":
    for field in descriptor.fields:
        if name in (field.name, field.json_name):
            return field
    near = difflib.get_close_matches(name, [field.name for field in descriptor.fields], n=1)
    hint = f"is {near[0]} meant?" if near else f"it has {', '.join(field.name for field in descriptor.fields)}"
    raise MessageError(f"{whole[:80]} is no field of {descriptor.full_name}: {hint}")


def _value(field: "AnyField", text: str) -> Any:  # noqa: ANN401  # as JSON would have it
    if field.type == FieldDescriptor.TYPE_BOOL:
        # JSON has true and false without quotes; anything else is told of as it came.
        return {"true": True, "false": False}.get(text, text)
    return text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
