"""What is deployed scores what its embeddings score: galleries that rank all, and those that may miss an entry."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reidserve.datasets import Crop, read_crops
from reidserve.embed import Embedder
from reidserve.errors import EvaluationError
from reidserve.evaluate import Labelled, Labels, Rule, embed_crops, evaluate
from reidserve.evaluate.deployed import evaluate_snapshot, needed_depth
from reidserve.index import Entry, FolderSnapshot, Origin, Record, open_writer, read_snapshot
from reidserve.index.storage.store import create_store
from tests.conftest import unit_rows

IDENTITY = "a" * 64


@pytest.fixture(scope="module")
def problem() -> tuple[Labelled, Labelled]:
    rng = np.random.default_rng(0)
    centres = unit_rows(rng, 40, 24)

    def part(count: int, name: str) -> Labelled:
        pids = rng.integers(-1, 40, count)
        rows = centres[pids] + 0.9 * unit_rows(rng, count, 24)
        labels = Labels(
            [str(pid) for pid in pids],
            [f"c{camera}" for camera in rng.integers(0, 4, count)],
            [f"/{name}/{place:04}.jpg" for place in range(count)],
        )
        return Labelled(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels)

    return part(60, "query"), part(600, "gallery")


@pytest.fixture(scope="module")
def folder(problem: tuple[Labelled, Labelled], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of the problem's entries, of which some were written again and some removed."""
    _, gallery = problem
    out = tmp_path_factory.mktemp("deployed") / "g.gallery"
    create_store(out, Origin(identity=IDENTITY, engine="none", dim=24)).close()
    labels = gallery.labels
    entries = [Entry(f"{place:04}", *said) for place, said in enumerate(zip(labels.pids, labels.camids, strict=True))]
    sourced = [replace(entry, source=source) for entry, source in zip(entries, labels.sources, strict=True)]
    records = [
        Record(entry, vector.tobytes()[:32], vector) for entry, vector in zip(sourced, gallery.embeddings, strict=True)
    ]
    with open_writer(out) as writer:
        writer.upsert(records)
        writer.delete([record.entry.id for record in records[100:150]])
        writer.upsert(records[120:130])
    return out


def test_a_gallery_that_ranks_all_scores_what_its_rows_score(problem, folder: Path):
    query, gallery = problem
    snapshot = read_snapshot(folder, kind="flat")
    order = np.r_[0:100, 150:600, 120:130]
    for rule in (Rule(), Rule(cameras="cross", junk=True), Rule(queries="all")):
        served = evaluate_snapshot(query, snapshot, rule=rule, impostors=True)
        direct = evaluate(query, gallery.take(order), rule=rule, impostors=True)
        assert served.whole
        assert served.metrics == direct.metrics
        for name in ("ranks", "reach", "rows", "scores", "wrong", "wrong_scores", "counted"):
            np.testing.assert_array_equal(getattr(served.outcomes, name), getattr(direct.outcomes, name), err_msg=name)
        assert 0.1 < served.metrics.mAP < 0.9


def test_an_index_that_may_miss_an_entry_gives_rank_k_and_no_map(problem, folder: Path, tmp_path: Path):
    query, _ = problem
    large = tmp_path / "large.gallery"
    shutil.copytree(folder, large)
    with open_writer(large) as writer:
        rows = unit_rows(np.random.default_rng(1), 9000, 24)
        writer.upsert([Record(Entry(f"s{place}", "0"), bytes(32), row) for place, row in enumerate(rows)])
    quantised, flat = (read_snapshot(large, kind=kind) for kind in ("rabitq", "flat"))
    assert quantised.kind == "rabitq"
    served, exact = evaluate_snapshot(query, quantised), evaluate_snapshot(query, flat)
    assert (served.whole, exact.whole) == (False, True)
    assert len(served.metrics.cmc) == 50
    np.testing.assert_allclose(served.metrics.cmc, exact.metrics.cmc, atol=0.05)
    assert np.isnan([served.metrics.mAP, served.metrics.mAP_step, served.metrics.mINP]).all()
    assert (served.metrics.positives, served.metrics.queries) == (exact.metrics.positives, exact.metrics.queries)


def test_enough_hits_are_asked_for_whatever_is_dropped(problem):
    query, gallery = problem
    depth = needed_depth(Rule(), query.labels, gallery.labels, max_rank=10)
    junk = gallery.labels.pids.count("-1")
    own = max(
        sum(
            (pid, camid) == (query.labels.pids[place], query.labels.camids[place]) != ("-1", camid)
            for pid, camid in zip(gallery.labels.pids, gallery.labels.camids, strict=True)
        )
        for place in range(len(query))
    )
    assert depth == 10 + junk + own


def test_an_empty_gallery_is_a_clear_answer():
    query = Labelled(np.eye(3, dtype=np.float32), Labels(["1"] * 3, ["c"] * 3, [None] * 3))
    with pytest.raises(EvaluationError, match="the gallery is empty"):
        evaluate_snapshot(query, FolderSnapshot(generation=0, dim=3))


def test_a_query_does_not_count_for_itself_in_a_gallery_of_its_own_files(
    gallery: Path, crops: Path, embedder: Embedder
):
    known = [Crop(crop.path, crop.pid) for crop in read_crops(crops)]  # cameras are not known
    query, _, _ = embed_crops(known, known, embedder)
    served = evaluate_snapshot(query, read_snapshot(gallery))
    # Two images of each identity: one is the query itself.
    assert served.outcomes.found.tolist() == [1] * 40
    assert served.outcomes.counted.tolist() == [39] * 40


def test_the_query_that_drops_most_decides_wherever_it_stands():
    count = 600
    query = Labels(["a"] * count, ["1"] * (count - 1) + ["2"], [None] * count)
    gallery = Labels(["b"] * 50, ["1"] * 10 + ["2"] * 40, [None] * 50)
    assert needed_depth(Rule(cameras="cross"), query, gallery, max_rank=5) == 45
