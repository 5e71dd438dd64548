"""The calls over HTTP as an OpenAPI document, from the messages and the comments of reid.v1."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

from reidserve.server.http.comments import comments
from reidserve.server.http.requests import TIMEOUT
from reidserve.server.http.routes import Route, routes
from reidserve.server.wire.methods import Method

if TYPE_CHECKING:
    from reidserve.server.http.comments import AnyDescriptor, AnyField

Json = dict[str, Any]

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
_PICTURE: Json = {"image/webp": _BINARY}
_INTEGER64: Json = {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}
_FLOAT: Json = {"type": "number"}
_SCALARS: Mapping[int, Json] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_INT64: _INTEGER64,
    FieldDescriptor.TYPE_FLOAT: {**_FLOAT, "format": "float"},
    FieldDescriptor.TYPE_DOUBLE: {**_FLOAT, "format": "double"},
}
# What protobuf's JSON writes in a form of its own.
_WELL_KNOWN: Mapping[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Names of fields, separated by commas."},
}
_ERROR: Json = {
    "type": "object",
    "required": ["code", "reason", "message", "requestId"],
    "additionalProperties": False,
    "properties": {
        "code": {"type": "string", "description": "The name of the gRPC status."},
        "reason": {"type": "string", "description": "The stable word for what is wrong."},
        "message": {"type": "string", "description": "For people."},
        "requestId": {"type": "string", "description": "Names the call in the server's log."},
    },
}
_HEADERS: list[Json] = [
    {
        "name": TIMEOUT,
        "in": "header",
        "description": "How long an answer is waited for, seconds.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "x-request-id",
        "in": "header",
        "description": "Names the call in logs and errors; the server makes one up where there is none.",
        "schema": {"type": "string"},
    },
]


def describe(methods: Sequence[Method]) -> Json:
    """The OpenAPI 3.1 document of what HTTP can ask for."""
    schemas: dict[str, Json] = {"Error": _ERROR}
    paths: dict[str, Json] = {}
    for method, route in routes(methods):
        if not route.path.startswith("/reid."):
            paths.setdefault(route.path, {})[route.verb.lower()] = _operation(method, route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "reidserve",
            "version": version("reidserve"),
            "description": "Who in the gallery is this? Each call is a call of reid.v1 and can be asked for at "
            "/reid.v1.SERVICE/METHOD too, with the whole request as the body. Names may be in snake_case.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def schema(descriptor: "AnyDescriptor", schemas: dict[str, Json]) -> Json:
    """A reference to the schema of a message's JSON; those that it needs are put among the others."""
    if descriptor.full_name in _WELL_KNOWN:
        return dict(_WELL_KNOWN[descriptor.full_name])
    name = descriptor.name
    if name not in schemas:
        schemas[name] = {}  # for messages that lead back to themselves
        schemas[name] = _object(descriptor, schemas)
    return {"$ref": f"#/components/schemas/{name}"}


def _object(descriptor: "AnyDescriptor", schemas: dict[str, Json]) -> Json:
    made: Json = {
        "type": "object",
        "description": comments().get(descriptor.name, ""),
        "additionalProperties": False,
        "properties": {
            field.json_name: _with_comment(_property(field, schemas), f"{descriptor.name}.{field.name}")
            for field in descriptor.fields
        },
    }
    choices = [oneof for oneof in descriptor.oneofs if len(oneof.fields) > 1]
    if choices:
        # At most one of each.
        made["allOf"] = [_at_most_one([field.json_name for field in oneof.fields]) for oneof in choices]
    return made


def _at_most_one(names: Sequence[str]) -> Json:
    each: list[Json] = [{"required": [name]} for name in names]
    return {"oneOf": [*each, {"not": {"anyOf": each}}]}


def _property(field: "AnyField", schemas: dict[str, Json]) -> Json:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _one(field.message_type.fields_by_name["value"], schemas)}
    one = _one(field, schemas)
    return {"type": "array", "items": one} if field.is_repeated else one


def _one(field: "AnyField", schemas: dict[str, Json]) -> Json:
    return dict(_SCALARS[field.type]) if field.message_type is None else schema(field.message_type, schemas)


def _with_comment(made: Json, name: str) -> Json:
    said = comments().get(name)
    return {**made, "description": said} if said else made


def _operation(method: Method, route: Route, schemas: dict[str, Json]) -> Json:
    request, service = method.request.DESCRIPTOR, method.service.rpartition(".")[2]
    taken = set(route.parts.values())
    operation: Json = {
        "operationId": method.name,
        "tags": [service],
        "description": comments().get(f"{service}.{method.name}", ""),
        "parameters": [
            *(_part(part, request, field) for part, field in route.parts.items()),
            *(
                _in_query(request, field, schemas)
                for field in request.fields
                if route.verb == "GET" and field.name not in taken
            ),
            *_HEADERS,
        ],
        "responses": {
            "200": {
                "description": "The answer.",
                "content": _PICTURE if route.shows else _json(schema(method.response.DESCRIPTOR, schemas)),
            },
            "default": {"description": "A refusal.", "content": _json({"$ref": "#/components/schemas/Error"})},
        },
    }
    if route.verb != "GET":
        content = _json(schema(request, schemas))
        if "image" in request.fields_by_name:
            content |= dict.fromkeys(_IMAGE_TYPES, _BINARY)
        operation["requestBody"] = {"content": content}
    return operation


def _json(of: Json) -> Json:
    return {"application/json": {"schema": of}}


def _part(part: str, request: "AnyDescriptor", field: str) -> Json:
    *way, last = field.split(".")
    for step in way:
        message = request.fields_by_name[step].message_type
        assert message is not None
        request = message
    said = comments().get(f"{request.name}.{last}", "")
    return {"name": part, "in": "path", "required": True, "description": said, "schema": {"type": "string"}}


def _in_query(request: "AnyDescriptor", field: "AnyField", schemas: dict[str, Json]) -> Json:
    said = comments().get(f"{request.name}.{field.name}", "")
    return {"name": field.name, "in": "query", "description": said, "schema": _property(field, schemas)}
