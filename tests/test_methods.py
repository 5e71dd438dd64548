"""The table of methods is the protocol: every rpc, once, as it is written there, under the scope that it needs."""

import pytest
from google.protobuf import message_factory

from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.wire.methods import images_of
from reidserve.server.wire.service import methods, services
from tests.test_service import no_reload

TABLE = methods(no_reload)
RPCS = {
    f"{service.full_name}/{rpc.name}": rpc
    for service in reid_pb2.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
}
WRITES = {"BatchUpsertEntries", "BatchDeleteEntries", "UpdateEntry", "ImportEntries"}
KINDS = {(False, False): "unary", (False, True): "stream", (True, True): "duplex"}


def test_every_rpc_has_one_method_and_every_method_an_rpc():
    assert sorted(method.full_name for method in TABLE) == sorted(RPCS)
    assert len(RPCS) == 18


@pytest.mark.parametrize("method", TABLE, ids=lambda method: method.name)
def test_a_method_takes_and_gives_what_its_rpc_says(method):
    rpc = RPCS[method.full_name]
    assert method.request is message_factory.GetMessageClass(rpc.input_type)
    assert method.response is message_factory.GetMessageClass(rpc.output_type)
    assert method.kind == KINDS[rpc.client_streaming, rpc.server_streaming]


@pytest.mark.parametrize("method", TABLE, ids=lambda method: method.name)
def test_a_method_needs_the_scope_of_what_it_does(method):
    expected = (
        "write" if method.name in WRITES else "admin" if method.name in {"CreateSnapshot", "Reload"} else "search"
    )
    assert method.scope == expected


def test_the_methods_of_a_service_stand_together():
    """Handlers are made service by service."""
    names = [method.service for method in TABLE]
    assert [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name] == services(TABLE)
    assert services(TABLE) == [f"reid.v1.{name}Service" for name in ("Search", "Gallery", "Model")]


@pytest.mark.parametrize(
    ("request_", "fields", "images"),
    [
        ("SearchRequest", {"image": b"x"}, 1),
        ("SearchRequest", {"track": {"images": [b"x"] * 5}}, 5),
        ("SearchRequest", {"embedding": b"x"}, 0),
        ("SearchRequest", {}, 0),
        ("BatchSearchRequest", {"requests": [{"image": b"x"}, {"track": {"images": [b"x"] * 3}}, {}]}, 4),
        ("RankRequest", {"image": b"x"}, 1),
        ("RankRequest", {"entry_id": "x"}, 0),
        ("EmbedRequest", {}, 1),
        ("PreviewRequest", {}, 1),
        ("BatchUpsertEntriesRequest", {"entries": [{"image": b"x"}, {"embedding": b"x"}, {}]}, 1),
        ("ImportEntriesRequest", {"entry": {"image": b"x"}}, 1),
        ("ImportEntriesRequest", {"entry": {"embedding": b"x"}}, 0),
        ("GetModelRequest", {}, 0),
    ],
)
def test_images_are_counted_wherever_a_request_has_them(request_, fields, images):
    assert images_of(getattr(reid_pb2, request_)(**fields)) == images
