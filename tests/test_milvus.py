"""What is of galleries in Milvus alone: expressions, the lease, writes that are cut off, failures."""

import socket
import threading
from contextlib import closing

import pytest

pytest.importorskip("pymilvus", reason="needs the [milvus] extra")

from reidserve.errors import BackendUnavailableError, EntryError, GalleryError, GalleryLockedError
from reidserve.index import Condition, Filter, GalleryUrl, Record
from reidserve.index.milvus import holds_gallery, make_rows, open_gallery, open_rows
from reidserve.index.milvus.conditions import Expression, expression, literal
from reidserve.index.milvus.server import Server
from tests.backends import Backend
from tests.plain import Plain, assert_holds
from tests.test_galleries import full
from tests.test_store import ORIGIN, record


@pytest.fixture
def url(lite_address: str, tmp_path) -> GalleryUrl:
    place = Backend("milvus-lite", tmp_path, lite_address).free_place()
    assert isinstance(place, GalleryUrl)
    return place


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('a "b" \\', '"a \\"b\\" \\\\"'),
        ("\n\r\t", '"\\n\\r\\t"'),
        ('" or row >= 0 or id == "', '"\\" or row >= 0 or id == \\""'),
        ("é\0{v0}", '"é\0{v0}"'),
        (True, "true"),
        (-3, "-3"),
        (0.5, "0.5"),
        (["a", "b"], '["a", "b"]'),
    ],
)
def test_a_value_is_written_so_that_it_cannot_be_anything_else(value, said: str):
    assert literal(value) == said


def test_a_filter_is_said_with_its_values_apart_and_inlined():
    where = Filter(
        pids=frozenset({"7", '"'}), not_camids=frozenset({"c"}), until=9, attributes=(Condition("n", "<", (2,)),)
    )
    said = expression(where)
    assert said.text == (
        "row >= {v0} and pid in {v1} and camid not in {v2} and timestamp < {v3} and timestamp >= {v4} "
        'and attributes["n"] < {v5}'
    )
    assert said.values == {"v0": 0, "v1": [':"', ":7"], "v2": [":c"], "v3": 9, "v4": -(2**63) + 1, "v5": 2.0}
    assert said.inlined().startswith('row >= 0 and pid in [":\\"", ":7"] and camid not in [":c"] and timestamp < 9')


def test_a_brace_in_a_value_is_no_place_for_another():
    assert Expression("a == {v0} and b == {v1}", {"v0": "{v1}", "v1": "x"}).inlined() == 'a == "{v1}" and b == "x"'


def test_a_write_that_was_cut_off_is_counted_and_made_again(url: GalleryUrl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reidserve.index.milvus.rows.LEASE_SECONDS", 0.5)
    plain = Plain()
    with closing(make_rows(url, ORIGIN)) as rows:
        rows.upsert(full(10))
        plain.upsert(full(10))
    dying = open_rows(url, write=True)
    # As a process that is killed between its entities and its last word: one of two messages has arrived.
    about = dying.held()
    monkeypatch.setattr("reidserve.index.milvus.rows._MESSAGE_BYTES", 1)
    cut = RuntimeError("killed")
    written: list = []

    def upsert(collection, entities):
        if len(written) == 2:
            raise cut
        written.append(entities)
        Server.upsert(dying.collection.server, collection, entities)

    monkeypatch.setattr(dying.collection.server, "upsert", upsert)
    with pytest.raises(RuntimeError, match="killed"):
        dying.upsert([record("new1", 1), record("new2", 2)])
    with closing(open_gallery(url, write=True)) as gallery:
        assert gallery.snapshot.generation == about.generation + 1
        assert [entry.id for entry in gallery.snapshot.entries()][10:] == ["new1"]
        again = gallery.upsert([record("new1", 1), record("new2", 2)])
        assert (again.generation, again.changed) == (about.generation + 2, 1)
        # Rows that were taken for the write that was cut off are given to nobody else.
        assert [gallery.snapshot.row(name) for name in ("e9", "new1", "new2")] == [10, 11, 13]


def test_a_writer_whose_lease_ran_out_is_told_who_has_it(url: GalleryUrl, monkeypatch: pytest.MonkeyPatch):
    make_rows(url, ORIGIN).close()
    monkeypatch.setattr("reidserve.index.milvus.rows.LEASE_SECONDS", 0.3)
    sleeping = open_rows(url, write=True)
    with closing(open_rows(url, write=True)) as other:
        assert other.upsert(full(3)).changed == 3
        with pytest.raises(GalleryLockedError, match=r"is being written to by .* and not by this process any more"):
            sleeping.upsert(full(5))
    sleeping.close()
    assert open_rows(url).count() == 3


def test_a_server_that_is_away_is_said_to_be_and_found_again(lite_address: str):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        server = Server(address)
        with pytest.raises(BackendUnavailableError, match=f"Milvus at {address} does not answer") as told:
            server.has("anything")
        assert told.value.retry_after > 0
        with pytest.raises(BackendUnavailableError, match="did not answer a moment ago"):
            server.has("anything")


def test_a_collection_of_somebody_else_is_no_gallery(url: GalleryUrl):
    server = Server(url.address)
    with closing(server):
        server.create("foreign", 8)
        server.point(url.name, "foreign")
    with pytest.raises(GalleryError, match=r"is a collection of Milvus \(foreign\), but no whole gallery"):
        open_gallery(url)
    assert not holds_gallery(url)


def test_attributes_that_milvus_cannot_keep_are_refused(url: GalleryUrl):
    long = record("long", 1, attributes={f"name{place}": "é" * 4000 for place in range(9)})
    with closing(make_rows(url, ORIGIN)) as rows:
        with pytest.raises(EntryError, match=r"up to 65,536 bytes as JSON, got 72,"):
            rows.upsert([record("short", 2), long])
        assert rows.count() == 0


def test_an_entry_changed_by_somebody_else_is_found_damaged(url: GalleryUrl):
    with closing(make_rows(url, ORIGIN)) as rows:
        rows.upsert(full(3))
        (entity,) = rows.collection.of_ids(["e1"], ["*"])
        rows.collection.server.upsert(rows.collection.name, [entity | {"pid": ":forged"}])
        assert [type(found).__name__ for found in rows.scan()] == ["Stored", "Damage", "Stored"]
        with pytest.raises(GalleryError, match=r"is damaged: entry 'e1': it fails its checksum"):
            rows.get("e1")


def test_reads_and_writes_side_by_side_see_whole_states(url: GalleryUrl):
    make_rows(url, ORIGIN).close()
    plain = Plain()
    stop, failures = threading.Event(), []
    with closing(open_gallery(url, write=True)) as gallery:

        def search() -> None:
            try:
                while not stop.is_set():
                    ranking = gallery.snapshot.search(record("", 1).vector[None], top_k=50)
                    (hits,) = gallery.snapshot.hits(ranking)
                    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            except Exception as error:  # noqa: BLE001  # told by the test
                failures.append(error)

        searching = threading.Thread(target=search)
        searching.start()
        for count in range(1, 15):
            records: list[Record] = [record(f"e{place}", place + count) for place in range(count)]
            assert gallery.upsert(records).changed == plain.upsert(records)
        stop.set()
        searching.join()
        assert failures == []
        assert_holds(gallery.snapshot, plain)
