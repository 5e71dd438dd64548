import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reidserve.errors import EvaluationError
from reidserve.evaluate import Evaluation, Labelled, Labels, Rule, evaluate, evaluate_rankings
from reidserve.evaluate.tables import tabulate, write_per_query
from reidserve.evaluate.trials import evaluate_one_per_identity
from reidserve.index import Ranking
from tests.conftest import unit_rows


def turned(*degrees: float) -> np.ndarray:
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def evaluation() -> Evaluation:
    """A query that finds its two at ranks 1 and 3; one that nothing matches."""
    query = Labelled(turned(0, 90), Labels(["a", "x"], ["1", None], ['a, "1".jpg', None]))
    gallery = Labelled(turned(0, 60, 80), Labels(["a", "b", "a"], ["2", "2", "3"], ["g0", "g1", "g2"]))
    return evaluate(query, gallery, rule=Rule())


EXPECTED: dict[str, Any] = {
    "trial": [1, 1],
    "query": ['a, "1".jpg', None],
    "pid": ["a", "x"],
    "camid": ["1", None],
    "matchable": [True, False],
    "right_entries": [2, 0],
    "first_rank": [1, None],
    "average_precision": [pytest.approx((1 + 2 / 3) / 2), None],
    "average_precision_trapezoid": [pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2), None],
    "average_precision_step": [pytest.approx((1 + 2 / 3) / 2), None],
    "inverse_negative_penalty": [pytest.approx(2 / 3), None],
    "best_right_score": [pytest.approx(1), None],
    "best_wrong_score": [pytest.approx(0.5), pytest.approx(np.cos(np.radians(10)))],
    "best_wrong": ["g1", "g2"],
    "best_wrong_pid": ["b", "a"],
}


def test_a_table_says_how_each_query_fared(evaluation: Evaluation):
    assert tabulate(evaluation) == EXPECTED


def test_csv_holds_the_table_and_leaves_empty_what_is_not_known(evaluation: Evaluation, tmp_path: Path):
    write_per_query(evaluation, tmp_path / "queries.csv")
    with (tmp_path / "queries.csv").open(encoding="utf-8", newline="") as file:
        header, first, second = csv.reader(file)
    assert header == list(EXPECTED)
    assert (first[1], first[6], float(first[7])) == ('a, "1".jpg', "1", EXPECTED["average_precision"][0])
    assert (second[1], second[2], second[6], second[7], second[13]) == ("", "x", "", "", "g2")


def test_parquet_holds_the_table_with_a_kind_for_each_column(evaluation: Evaluation, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_per_query(evaluation, tmp_path / "queries.parquet")
    table = parquet.read_table(tmp_path / "queries.parquet")
    assert table.to_pydict() == EXPECTED
    kinds = {name: str(table.schema.field(name).type) for name in ("trial", "query", "matchable", "first_rank")}
    assert kinds == {"trial": "int64", "query": "string", "matchable": "bool", "first_rank": "int64"}


def test_of_rankings_cut_short_no_average_precision_is_said():
    query, gallery = Labels(["a"], ["1"], ["q"]), Labels(["a", "a"], ["2", "2"], ["g0", "g1"])
    ranking = Ranking(np.ones((1, 1), np.float32), np.zeros((1, 1), np.int64))
    table = tabulate(evaluate_rankings([(slice(0, 1), ranking)], query, gallery))
    assert (table["right_entries"], table["first_rank"], table["average_precision"]) == ([2], [1], [None])
    assert (table["best_wrong"], table["best_wrong_score"]) == ([None], [None])


def test_trials_are_counted_from_one():
    images = Labelled(
        unit_rows(np.random.default_rng(0), 6, 4), Labels(list("aabbbc"), [None] * 6, [str(n) for n in range(6)])
    )
    table = tabulate(evaluate_one_per_identity(images, trials=2))
    assert table["trial"] == [1, 1, 1, 2, 2, 2]


def test_another_suffix_is_refused_and_a_failed_write_leaves_the_old_file(evaluation: Evaluation, tmp_path: Path):
    with pytest.raises(EvaluationError, match=r"as \.csv or \.parquet, got .*queries\.xlsx"):
        write_per_query(evaluation, tmp_path / "queries.xlsx")
    with pytest.raises(FileNotFoundError):
        write_per_query(evaluation, tmp_path / "nowhere" / "queries.csv")
    old = tmp_path / "queries.csv"
    old.write_text("old")
    labels = Labels(evaluation.query.pids, evaluation.query.camids, ["\udc80", None])
    broken = Evaluation(evaluation.rule, labels, evaluation.gallery, evaluation.outcomes, evaluation.gallery_size)
    with pytest.raises(UnicodeEncodeError):
        write_per_query(broken, old)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]
