import subprocess
import sys
from array import array

import pytest

from reidserve.client import Client, Filter, RequestError
from reidserve.errors import QueryError
from tests.conftest import Server


def test_importing_the_client_pulls_in_no_ml_package():
    script = (
        "import sys, reidserve.client\n"
        "heavy = {'numpy', 'PIL', 'onnxruntime', 'onnx', 'torch', 'faiss', 'msgspec', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_server_that_is_not_there_is_said_to_be():
    with (
        Client("127.0.0.1:1", timeout=5) as client,
        pytest.raises(RequestError, match="is reid-serve running") as failure,
    ):
        client.search(b"image")
    assert (failure.value.code, failure.value.reason) == ("UNAVAILABLE", "UNAVAILABLE")


def test_the_servers_reason_reaches_the_caller(server: Server):
    with Client(server.target) as client, pytest.raises(RequestError, match="expected a JPEG") as failure:
        client.search(b"no image")
    assert (failure.value.code, failure.value.reason) == ("INVALID_ARGUMENT", "IMAGE_INVALID")


@pytest.mark.parametrize(("entry_id", "top_k"), [("a\udcff", 1), ("a", 10**10)])
def test_a_query_that_does_not_fit_the_protocol_is_refused_before_it_is_sent(entry_id, top_k):
    with Client("127.0.0.1:1") as client, pytest.raises(QueryError, match="does not fit the protocol"):
        client.search_entry(entry_id, top_k)


@pytest.mark.parametrize(
    "ask", [Client.rank_entry, Client.search_entry, lambda client, _: client.gallery("", generation=2**63)]
)
def test_a_request_that_does_not_fit_the_protocol_is_refused_by_every_method(ask):
    with Client("127.0.0.1:1") as client, pytest.raises(QueryError, match="does not fit the protocol"):
        ask(client, "a\udcff")


def test_a_filter_is_heeded_by_each_way_of_searching(server: Server, crops):
    where = Filter(camids=["2"], pids=["0003", "0004", "nobody"])
    path = sorted(crops.iterdir())[0]
    with Client(server.target) as client:
        results = [
            client.search(path, where=where),
            client.search_embedding(client.embed(path), where=where),
            client.search_entry(path.name, where=where),
            client.search(path, where=Filter(ids=[])),
            client.search(path, 40, where=Filter()),
        ]
    assert [{(hit.pid, hit.camid) for hit in result.hits} for result in results[:4]] == [
        *[{("0003", "2"), ("0004", "2")}] * 3,
        set(),
    ]
    assert len(results[4].hits) == 40


def test_a_whole_ranking_is_arrays_of_rows_and_scores(server: Server, crops):
    path = sorted(crops.iterdir())[0]
    with Client(server.target) as client:
        by_image, by_embedding = client.rank(path), client.rank_embedding(client.embed(path))
        by_entry = client.rank_entry(path.name, where=Filter(camids=["1"]))
        names = {entry.row: entry.entry_id for entry in client.entries()}
    assert (by_image.rows.typecode, by_image.scores.typecode) == ("q", "f")
    assert by_image == by_embedding
    assert [names[row] for row in by_image.rows][:1] == [path.name]
    assert len(by_image.rows) == len(by_image.scores) == 40
    assert {names[row] for row in by_entry.rows} == {one.name for one in crops.iterdir() if "_c1" in one.name} - {
        path.name
    }


def test_an_embedding_is_a_float_array_of_unit_length(server: Server, crops):
    path = sorted(crops.iterdir())[0]
    with Client(server.target) as client:
        embedding = client.embed(path)
    assert isinstance(embedding, array)
    assert embedding.typecode == "f"
    assert sum(number * number for number in embedding) == pytest.approx(1, abs=1e-6)
