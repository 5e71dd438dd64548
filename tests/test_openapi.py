"""The OpenAPI document against what protobuf's JSON really writes and reads."""

import base64
import json
import random
import re
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.http.comments import comments
from reidserve.server.http.openapi import describe, schema
from reidserve.server.http.requests import write_json
from reidserve.server.http.routes import routes
from reidserve.server.wire.service import methods
from tests.test_service import no_reload

TABLE = methods(no_reload)
DOCUMENT = describe(TABLE)
SCHEMAS = DOCUMENT["components"]["schemas"]
ALL = dict(SCHEMAS)  # and those of requests that the document says as parameters
UNARY = [method for method in TABLE if method.kind == "unary"]
TYPES: dict[str, Any] = {
    "string": str,
    "object": dict,
    "array": list,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


USED = {
    *("$ref", "type", "format", "pattern", "description", "contentEncoding", "items", "properties", "required"),
    *("additionalProperties", "allOf", "oneOf", "anyOf", "not", "exclusiveMinimum"),
}


def faults(value: Any, of: dict[str, Any], at: str = "$") -> list[str]:
    """What of a value a schema does not allow; of JSON Schema, all that the document uses."""
    assert set(of) <= USED
    if "$ref" in of:
        return faults(value, ALL[of["$ref"].removeprefix("#/components/schemas/")], at)
    kind = of.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{at}: {value!r} is no {kind}"]
    found = []
    if "pattern" in of and not re.search(of["pattern"], value):
        found.append(f"{at}: {value!r} is not like {of['pattern']}")
    if isinstance(value, dict):
        found += faults_within(value, of, at)
    if isinstance(value, list):
        found += [fault for place, one in enumerate(value) for fault in faults(one, of["items"], f"{at}[{place}]")]
    return found + faults_together(value, of, at)


def faults_within(value: dict[str, Any], of: dict[str, Any], at: str) -> list[str]:
    found = [f"{at}: no {name}" for name in of.get("required", []) if name not in value]
    more = of.get("additionalProperties", True)
    for name, one in value.items():
        inner = of.get("properties", {}).get(name, more if isinstance(more, dict) else None)
        if inner is not None:
            found += faults(one, inner, f"{at}.{name}")
        elif more is False:
            found.append(f"{at}: {name} is not known")
    return found


def faults_together(value: Any, of: dict[str, Any], at: str) -> list[str]:
    found = [fault for part in of.get("allOf", []) for fault in faults(value, part, at)]
    if "anyOf" in of and all(faults(value, part, at) for part in of["anyOf"]):
        found.append(f"{at}: none of anyOf")
    if "oneOf" in of and sum(not faults(value, part, at) for part in of["oneOf"]) != 1:
        found.append(f"{at}: not one of oneOf")
    if "not" in of and not faults(value, of["not"], at):
        found.append(f"{at}: not allowed")
    return found


def fill(message: Message, chance: random.Random, depth: int = 0) -> Message:
    """Set some of a message's fields to anything that they may be."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.3 or depth > 4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            for number in range(chance.randint(0, 2)):
                if value.message_type is None:
                    getattr(message, field.name)[f"name {number}"] = scalar(value, chance)
                else:
                    fill(getattr(message, field.name)[f"name {number}"], chance, depth + 1)
        elif field.is_repeated and field.message_type is not None:
            for _ in range(chance.randint(0, 2)):
                fill(getattr(message, field.name).add(), chance, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(scalar(field, chance) for _ in range(chance.randint(0, 2)))
        elif field.message_type is not None:
            fill_one(message, field, chance, depth)
        else:
            setattr(message, field.name, scalar(field, chance))
    return message


def fill_one(message: Message, field: Any, chance: random.Random, depth: int) -> None:
    inner = getattr(message, field.name)
    inner.SetInParent()
    match inner.DESCRIPTOR.full_name:
        case "google.protobuf.Timestamp":
            inner.FromMicroseconds(chance.randint(-(10**15), 10**15))
        case "google.protobuf.Duration":
            inner.FromMicroseconds(chance.randint(0, 10**9))
        case "google.protobuf.FieldMask":
            inner.paths.extend(["pid", "camid"])
        case _:
            fill(inner, chance, depth + 1)


def scalar(field: Any, chance: random.Random) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return chance.choice(["", "x", "ä/b", "0001_c1"])
        case FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.randint(0, 9))
        case FieldDescriptor.TYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.TYPE_INT32:
            return chance.randint(-(2**31), 2**31 - 1)
        case FieldDescriptor.TYPE_INT64:
            return chance.randint(-(2**63), 2**63 - 1)
        case _:
            return chance.choice([0.0, 0.3, -1e9])


@pytest.mark.parametrize("method", UNARY, ids=lambda method: method.name)
def test_every_message_is_written_as_the_document_says_and_read_again(method):

    chance = random.Random(8)
    for kind in (method.request, method.response):
        of = schema(kind.DESCRIPTOR, ALL)
        for _ in range(200):
            message = fill(kind(), chance)
            written = json.loads(write_json(message))
            assert faults(written, of) == []
            assert json_format.ParseDict(written, kind()) == message


def asked(**said: Any) -> dict[str, Any]:
    return said


@pytest.mark.parametrize(
    "said",
    [
        asked(topp=3),
        asked(topK="many"),
        asked(topK=1.5),
        asked(image="AAAA", entryId="x"),
        asked(image=3),
        asked(filter={"pids": {"anyOf": "x"}}),
        asked(filter={"attributes": [{"name": "a", "less": {"number": 1, "text": "x"}}]}),
        asked(filter={"since": 3}),
        asked(groupByPid="true"),
        asked(generation={}),
    ],
)
def test_what_the_document_does_not_allow_is_not_read_either(said):
    assert faults(said, {"$ref": "#/components/schemas/SearchRequest"}) != []
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(said, reid_pb2.SearchRequest())


def test_each_short_path_is_an_operation_with_its_parts():
    operations = {
        (path, verb): operation for path, verbs in DOCUMENT["paths"].items() for verb, operation in verbs.items()
    }
    short = [(route, method) for method, route in routes(TABLE) if route.path.startswith("/v1/")]
    assert {(route.path, route.verb.lower()) for route, _ in short} == set(operations)
    assert len({operation["operationId"] for operation in operations.values()}) == len(short)
    for route, method in short:
        operation = operations[route.path, route.verb.lower()]
        named = {given["name"] for given in operation["parameters"] if given["in"] == "path"}
        assert named == set(re.findall("{(.*?)}", route.path))
        assert operation["description"], method.name
        assert ("requestBody" in operation) == (route.verb != "GET")


def test_every_reference_leads_somewhere():
    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            return {node["$ref"]} if "$ref" in node else set().union(*map(references, node.values()), set())
        return set().union(*map(references, node), set()) if isinstance(node, list) else set()

    used = {one.removeprefix("#/components/schemas/") for one in references(DOCUMENT)}
    assert used == set(SCHEMAS)


def test_the_comments_of_every_message_field_and_method_are_found():
    file = reid_pb2.DESCRIPTOR
    names = [
        *(message.name for message in file.message_types_by_name.values()),
        *(
            f"{message.name}.{field.name}"
            for message in file.message_types_by_name.values()
            for field in message.fields
        ),
        *(service.name for service in file.services_by_name.values()),
        *(f"{service.name}.{method.name}" for service in file.services_by_name.values() for method in service.methods),
    ]
    assert set(comments()) == set(names)
    assert comments()["Hit.rank"] == "1 for the best."
    assert comments()["SearchRequest.track"].startswith("Several images of one target: the mean of their embeddings")


def test_bytes_are_base64():
    assert faults(base64.b64encode(b"x").decode(), {"type": "string", "contentEncoding": "base64"}) == []
    assert SCHEMAS["EmbedResponse"]["properties"]["embedding"]["contentEncoding"] == "base64"
