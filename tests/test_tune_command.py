import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reidserve.index import Entry, Origin, Record
from reidserve.index.storage.store import create_store
from tests.conftest import run_command, unit_rows

DIM, IDENTITIES, FRAMES = 64, 2500, 4


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 entries: a full block and a part of one."""
    folder = tmp_path_factory.mktemp("galleries") / "labelled.gallery"
    rng = np.random.default_rng(0)
    centres = unit_rows(rng, IDENTITIES, DIM)
    with closing(create_store(folder, Origin("0" * 64, "fp32/test", DIM))) as store:
        for start in range(0, IDENTITIES, 250):
            vectors = centres[start : start + 250].repeat(FRAMES, axis=0) + 0.6 * unit_rows(rng, 250 * FRAMES, DIM)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            store.upsert(
                [
                    Record(
                        Entry(
                            f"{start + place // FRAMES}_{place % FRAMES}", str(start + place // FRAMES), f"c{place % 2}"
                        ),
                        bytes(32),
                        vector,
                    )
                    for place, vector in enumerate(vectors)
                ]
            )
    return folder


def test_tune_compares_indexes_with_exact_search(labelled: Path):
    ended = run_command(
        "reid-index", "tune", labelled, "--index", "rabitq", "--index", "flat-fp16", "--queries", 200, "--json"
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    exact, rabitq, halves = told["kinds"]
    assert [kind["kind"] for kind in told["kinds"]] == ["flat", "rabitq", "flat-fp16"]
    assert [kind["covered"] for kind in told["kinds"]] == [0, 8192, 8192]
    scores = ("recall1", "recall10", "recall", "rank1", "rank5", "rank10")
    assert [halves[name] for name in scores] == [exact[name] for name in scores]
    assert exact["recall"] == 1 >= rabitq["recall"] > 0.9
    assert 0.9 < exact["rank1"] <= 1
    assert 0 <= exact["rank1"] - rabitq["rank1"] < 0.05
    # Of the 50 best it cannot be known.
    assert not any("mAP" in kind for kind in told["kinds"])


def test_tune_prints_a_table(labelled: Path):
    ended = run_command("reid-index", "tune", labelled, "--queries", 50, "--top-k", 20)
    assert ended.returncode == 0, ended.stderr
    head, exact, rabitq, proposed = ended.stdout.splitlines()
    assert head.split() == [
        "index",
        "recall@1",
        "recall@10",
        "recall@20",
        "Rank-1",
        "Rank-5",
        "Rank-10",
        "ms",
    ]
    assert exact.split()[:4] == ["flat", "1.0000", "1.0000", "1.0000"]
    assert rabitq.split()[0] == "rabitq"
    assert "(+0.0000)" in rabitq
    assert proposed == "rabitq proposes from 8192 of 10000 entries; those in no full block are multiplied"


def test_no_query_is_one_line(labelled: Path):
    ended = run_command("reid-index", "tune", labelled, "--queries", 0)
    assert (ended.returncode, ended.stderr) == (1, "error: at least one query is needed, got 0\n")


def test_tune_says_that_labels_are_needed(gallery: Path, tmp_path: Path):
    with closing(create_store(tmp_path / "g", Origin("0" * 64, "fp32/test", 8))) as store:
        store.upsert([Record(Entry("a"), bytes(32), unit_rows(np.random.default_rng(0), 1, 8)[0])])
    ended = run_command("reid-index", "tune", tmp_path / "g")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "labels are needed" in ended.stderr
