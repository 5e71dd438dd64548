"""How many fields a message has, against messages that protobuf made."""

import random
import time

import pytest
from google.protobuf.message import DecodeError, Message

from reidserve.errors import MessageTooLargeError
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.wire.fields import MOST_FIELDS, has_more_fields, parse


def fields_of(message: Message) -> int:
    """Plainly: what is set, and within it."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            # A map is a list of messages of a key and a value, both always written.
            inner = field.message_type.fields_by_name["value"].message_type
            count += sum(3 + (fields_of(one) if inner else 0) for one in value.values())
            continue
        for one in value if field.is_repeated else [value]:
            within = field.message_type is not None and not isinstance(one, reid_pb2.Choice)
            count += 1 + (fields_of(one) if within else 0)
    return count


MESSAGES = [
    reid_pb2.SearchRequest(),
    reid_pb2.SearchRequest(image=b"\x0a\x00" * 300, gallery="mall", top_k=-5, min_score=0.5),
    reid_pb2.SearchRequest(
        track=reid_pb2.Track(images=[b"a", b"", b"ccc"]),
        rerank=reid_pb2.Rerank(weight=0.25, k1=300),
        filter=reid_pb2.Filter(
            ids=reid_pb2.Choice(any_of=["a"] * 200),
            exclude_camids=["", "c"],
            attributes=[reid_pb2.AttributeCondition(name="speed", less=reid_pb2.Value(number=1.5))] * 9,
        ),
    ),
    reid_pb2.BatchSearchRequest(requests=[reid_pb2.SearchRequest(entry_id="x", generation=2**62)] * 40),
    reid_pb2.BatchUpsertEntriesRequest(
        entries=[reid_pb2.NewEntry(entry_id="x", image=b"i", attributes={"a": reid_pb2.Value(integer=-1)})] * 7
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.DESCRIPTOR.name)
def test_fields_are_counted_as_they_are_written(message: Message):
    raw, count = message.SerializeToString(), fields_of(message)
    assert not has_more_fields(raw, type(message), count)
    if count:
        assert has_more_fields(raw, type(message), count - 1)


def test_random_bytes_are_looked_at_and_no_more():
    rng = random.Random(5)
    for _ in range(3000):
        raw = rng.randbytes(rng.randrange(60))
        has_more_fields(raw, reid_pb2.BatchSearchRequest, 1000)
        try:
            reid_pb2.BatchSearchRequest.FromString(raw)
        except DecodeError:
            continue


def test_a_filter_of_as_many_texts_as_it_may_name_is_no_large_message():
    names = reid_pb2.Choice(any_of=[f"entry {place}" for place in range(100_000)])
    raw = reid_pb2.SearchRequest(filter=reid_pb2.Filter(ids=names)).SerializeToString()
    assert len(parse(reid_pb2.SearchRequest, raw).filter.ids.any_of) == 100_000


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        (reid_pb2.BatchSearchRequest, b"\x0a\x00"),
        (reid_pb2.BatchSearchRequest, b"\x0a\x02\x32\x00"),
        (reid_pb2.BatchUpsertEntriesRequest, b"\x12\x00"),
        (reid_pb2.BatchDeleteEntriesRequest, b"\x12\x00"),
    ],
    ids=["nothing", "nothing within", "entries", "texts"],
)
def test_a_message_of_nothing_but_messages_is_refused_before_it_takes_memory(kind, unit: bytes):
    count = MOST_FIELDS // (1 + unit.count(b"\x32"))
    assert len(parse(kind, unit * count).ListFields()[0][1]) == count
    started = time.perf_counter()
    with pytest.raises(MessageTooLargeError, match="50,000 fields"):
        parse(kind, unit * (8 * 2**20))
    assert time.perf_counter() - started < 5


def test_a_part_that_is_no_message_hides_none_before_it():
    swollen = reid_pb2.Filter(attributes=[reid_pb2.AttributeCondition()] * (2 * MOST_FIELDS)).SerializeToString()
    raw = reid_pb2.SearchRequest(filter=reid_pb2.Filter.FromString(swollen)).SerializeToString() + b"\x32\x01\xff"
    with pytest.raises(MessageTooLargeError):
        parse(reid_pb2.SearchRequest, raw)
    with pytest.raises(DecodeError):
        parse(reid_pb2.SearchRequest, raw[-3:])


def test_a_number_without_an_end_is_no_work():
    raw = b"\x0a" + b"\xff" * (8 * 2**20)
    started = time.perf_counter()
    with pytest.raises(DecodeError):
        parse(reid_pb2.BatchSearchRequest, raw)
    assert time.perf_counter() - started < 5
