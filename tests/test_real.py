"""The whole way on real photographs with a network trained by others."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reidserve.client import Client
from reidserve.embed import Embedder, open_embedder
from reidserve.index import Filter, GalleryUrl, Record, read_snapshot
from reidserve.index.places import open_gallery
from reidserve.index.storage.rows import Stored
from reidserve.index.storage.store import open_store
from tests.conftest import Server, run_command, start_server, stop_server

PATTERN = r"(?P<pid>[a-z]+_\d+)_cam(?P<camid>\d)"


@pytest.fixture(scope="module")
def photographs(shared: Path) -> Path:
    return shared / "data" / "vehicles" / "images"


@pytest.fixture(scope="module")
def vehicles(tmp_path_factory: pytest.TempPathFactory, photographs: Path, osnet: Path) -> Path:
    out = tmp_path_factory.mktemp("vehicles") / "vehicles.gallery"
    built = run_command(
        "reid-index", "build", photographs, "--model", osnet, "--out", out, "--pattern", PATTERN, "--json"
    )
    assert built.returncode == 0, built.stderr
    report = json.loads(built.stdout)
    assert (report["entries"], report["embedded"], report["failures"]) == (1134, 1134, [])
    return out


@pytest.fixture(scope="module")
def serving(osnet: Path, vehicles: Path) -> Iterator[Server]:
    running = start_server("--model", osnet, "--gallery", vehicles)
    yield running
    assert stop_server(running) == 0


@pytest.fixture(scope="module")
def embedder(osnet: Path) -> Embedder:
    return open_embedder(osnet)


PUBLISHED = {"all": (1134, [0.4603, 0.6861, 0.7795, 0.5644]), "test": (120, [0.4833, 0.7917, 0.8833, 0.6059])}


def scored(*arguments: object) -> list[dict]:
    result = run_command("reid-eval", *arguments, "--pattern", PATTERN, "--json")
    assert result.returncode == 0, result.stderr
    subjects: list[dict] = json.loads(result.stdout)["subjects"]
    return subjects


def check_published(figures: dict, name: str) -> None:
    queries, expected = PUBLISHED[name]
    assert (figures["queries"], figures["unmatchable"]) == (queries, 0)
    found = [*(figures["cmc"][k - 1] for k in (1, 5, 10)), figures["mAP"]]
    assert found == pytest.approx(expected, abs=0.0005)


def test_artifact_gallery_and_server_reproduce_the_published_scores_to_the_last_digit(
    photographs: Path, osnet: Path, vehicles: Path, serving: Server
):
    crops = ("--query-crops", photographs, "--gallery-crops", photographs)
    stages = scored(*crops, "--model", osnet, "--gallery", vehicles, "--server", serving.target)
    assert [one["name"] for one in stages] == ["artifact", "gallery", "server"]
    artifact, gallery, served = (one["figures"] for one in stages)
    check_published(artifact, "all")
    assert artifact == gallery == served


def test_the_published_scores_of_the_test_part_are_reproduced(photographs: Path, osnet: Path):
    crops = ("--query-crops", photographs / "test", "--gallery-crops", photographs / "test")
    (artifact,) = scored(*crops, "--model", osnet)
    check_published(artifact["figures"], "test")


def test_every_photograph_finds_itself_over_grpc(photographs: Path, serving: Server):
    with Client(serving.target) as client:
        for path in sorted(photographs.rglob("*.jpg")):
            (hit,) = client.search(path, top_k=1).hits
            assert hit.entry_id == path.relative_to(photographs).as_posix()
            assert hit.score == pytest.approx(1, abs=1e-6)


def test_rankings_over_grpc_equal_brute_force_entry_by_entry_and_score_by_score(
    photographs: Path, serving: Server, vehicles: Path, embedder: Embedder
):
    snapshot = read_snapshot(vehicles, identity=serving.identity)
    rows, entries = snapshot.rows().tolist(), list(snapshot.entries())
    stored = np.stack([snapshot.vector(row) for row in rows])
    queries = sorted(photographs.rglob("*.jpg"))[:: 1134 // 50][:50]
    assert len(queries) == 50
    with Client(serving.target) as client:
        for path in queries:
            query = embedder.embed_encoded([path.read_bytes()])[0]
            scores = np.vecdot(stored, query)
            order = np.lexsort((rows, -scores))
            hits = client.search(path, top_k=len(rows)).hits
            assert [hit.entry_id for hit in hits] == [entries[place].id for place in order]
            assert [np.float32(hit.score) for hit in hits] == scores[order].tolist()
            assert [(hit.pid, hit.camid) for hit in hits[:1]] == [(entries[order[0]].pid, entries[order[0]].camid)]


@pytest.mark.parametrize("address", ["lite_address", "milvus_address"])
def test_rankings_in_milvus_equal_the_folders_entry_by_entry_and_bit_by_bit(
    request: pytest.FixtureRequest, address: str, vehicles: Path
):
    from reidserve.index.milvus import make_rows

    url = GalleryUrl("milvus", request.getfixturevalue(address), "vehicles")
    with closing(open_store(vehicles)) as store:
        found = [one for one in store.scan() if isinstance(one, Stored)]
        with closing(make_rows(url, store.origin)) as rows:
            for start in range(0, len(found), 512):
                some = found[start : start + 512]
                rows.upsert([Record(one.entry, one.content_sha256, one.vector) for one in some])
    here = read_snapshot(vehicles)
    with closing(open_gallery(url)) as gallery:
        there = gallery.snapshot
        assert list(there.entries()) == list(here.entries())
        queries = np.stack([one.vector for one in found[::5]])
        for where in (None, Filter(not_camids=frozenset("1"))):
            expected, ranking = (one.search(queries, top_k=10, where=where) for one in (here, there))
            assert there.hits(ranking) == here.hits(expected)
            np.testing.assert_array_equal(ranking.scores.view(np.uint32), expected.scores.view(np.uint32))
        expected, ranking = (one.rank_all(queries) for one in (here, there))
        np.testing.assert_array_equal(ranking.scores.view(np.uint32), expected.scores.view(np.uint32))
        assert there.hits(ranking) == here.hits(expected)
