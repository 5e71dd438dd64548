import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from reidserve.errors import EvaluationError
from reidserve.evaluate import MARKET, Rule
from reidserve.evaluate.comparison import bootstrap, compare
from reidserve.evaluate.report.document import Document, Figures, QueryFigures, Record


def document(*queries: QueryFigures, name: str = "artifact", rule: Rule = MARKET, gallery: int = 10) -> Document:
    """A document of one subject, of which a comparison reads the queries alone."""
    figures = Figures(
        cmc=(), mAP=None, mAP_trapezoid=None, mAP_step=None, mINP=None, queries=0, unmatchable=0, positives=0
    )
    record = Record(
        name=name, facts={}, whole=True, trials=1, gallery=gallery, figures=figures, open_set=None, cameras=(),
        confusions=(), queries=queries,
    )  # fmt: skip
    return Document(
        written="2026-01-01T00:00:00Z", dataset="/data/crops", layout="crops", protocol="market1501", rule=rule,
        counts={"gallery": gallery}, subjects=(record,),
    )  # fmt: skip


def random_queries(seed: int, *, pids: int = 30, each: int = 4) -> list[QueryFigures]:
    rng = np.random.default_rng(seed)
    return [
        QueryFigures(f"{pid}/{n}.jpg", 1, str(pid), float(rng.random()), int(rng.integers(1, 4)))
        for pid in range(pids)
        for n in range(each)
    ]


def worsened(queries: list[QueryFigures], by: float) -> list[QueryFigures]:
    return [msgspec.structs.replace(one, average_precision=(one.average_precision or 0) - by) for one in queries]


def test_equal_reports_differ_by_exactly_nothing():
    queries = random_queries(0)
    (found,) = compare(document(*queries), document(*reversed(queries)))
    for difference in (found.rank1, found.mAP):
        assert (difference.change, difference.low, difference.high) == (0, 0, 0)
        assert difference.may_be_noise
    assert (found.queries, found.identities, found.only_before, found.only_after) == (120, 30, 0, 0)
    assert "no query differs" in found.lines()[0]


def test_a_change_of_every_query_is_not_noise_and_has_its_sign():
    queries = random_queries(0)
    (found,) = compare(document(*queries), document(*worsened(queries, 0.01)))
    assert found.mAP.change == pytest.approx(-0.01)
    assert (found.mAP.low, found.mAP.high) == pytest.approx((-0.01, -0.01))
    assert not found.mAP.may_be_noise
    assert found.rank1.may_be_noise
    assert found.lines()[1].endswith("-1.00 points, 95 % interval -1.00 to -1.00, which does not contain 0: "
                                     "this is not noise.")  # fmt: skip


def test_means_are_those_of_the_common_queries():
    first, second = random_queries(1), random_queries(2)
    (found,) = compare(document(*first), document(*second))
    assert found.mAP.before == pytest.approx(np.mean([one.average_precision for one in first]))
    assert found.rank1.after == pytest.approx(np.mean([one.first == 1 for one in second]))
    assert found.mAP.change == pytest.approx(found.mAP.after - found.mAP.before)
    assert found.mAP.low < found.mAP.change < found.mAP.high
    assert found.mAP.may_be_noise
    assert "contains 0: this may be noise" in found.lines()[1]


def test_the_bootstrap_equals_a_plain_loop_over_drawn_identities():
    rng = np.random.default_rng(5)
    changes, owners = rng.standard_normal(50), rng.integers(0, 12, 50)
    owners = np.unique(owners, return_inverse=True)[1]
    clusters = [changes[owners == owner] for owner in range(owners.max() + 1)]
    random = np.random.default_rng(7)
    means = []
    for _ in range(500):
        drawn = random.integers(len(clusters), size=len(clusters))
        means.append(np.mean(np.concatenate([clusters[one] for one in drawn])))
    expected = np.quantile(means, (0.025, 0.975))
    assert bootstrap(changes, owners, samples=500, seed=7) == pytest.approx(tuple(expected), abs=1e-12)


def test_the_interval_is_that_of_the_normal_law_where_every_query_has_an_identity_of_its_own():
    changes = np.random.default_rng(3).standard_normal(2000)
    low, high = bootstrap(changes, np.arange(2000), samples=10_000, seed=0)
    spread = 1.96 * changes.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((changes.mean() - spread, changes.mean() + spread), abs=0.1 * spread)


def test_queries_that_succeed_together_do_not_make_an_interval_narrower():
    changes = np.random.default_rng(3).standard_normal(100)
    alone = bootstrap(changes, np.arange(100), samples=2000, seed=0)
    together = bootstrap(np.repeat(changes, 9), np.repeat(np.arange(100), 9), samples=2000, seed=0)
    assert together == pytest.approx(alone, abs=1e-12)


def test_many_identities_are_drawn_in_parts_with_the_same_answer(monkeypatch):
    changes, owners = np.random.default_rng(3).standard_normal(64), np.arange(64)
    at_once = bootstrap(changes, owners, samples=100, seed=0)
    monkeypatch.setattr("reidserve.evaluate.comparison._DRAWN_AT_ONCE", 64 * 7)
    assert bootstrap(changes, owners, samples=100, seed=0) == at_once


def test_queries_of_one_report_alone_are_left_out_and_counted():
    queries = random_queries(0)
    (found,) = compare(document(*queries[:-3]), document(*queries[8:]))
    assert (found.queries, found.only_before, found.only_after) == (109, 8, 3)
    assert "Left out: 8 queries of the first and 3 of the second" in found.lines()[3]


def test_a_query_is_told_by_its_trial_and_source_and_by_how_often_it_stands_there():
    queries = [QueryFigures("q", trial, str(trial), 0.5, 1) for trial in (1, 2)]
    twice = [*queries, QueryFigures("q", 1, "1", 0.25, 1)]
    (found,) = compare(document(*twice), document(*twice))
    assert (found.queries, found.mAP.change) == (3, 0)
    (found,) = compare(document(*twice), document(*queries))
    assert (found.queries, found.only_before) == (2, 1)


def test_of_rankings_cut_short_rank_1_alone_is_compared():
    queries = random_queries(0)
    cut = [msgspec.structs.replace(one, average_precision=None) for one in queries]
    (found,) = compare(document(*queries), document(*cut))
    assert found.mAP is None
    assert found.rank1.change == 0


def test_stages_are_compared_with_their_like_or_the_only_one_with_the_only_one():
    queries = random_queries(0)
    first, second = document(*queries), document(*queries, name="server")
    assert [(one.before, one.after) for one in compare(first, second)] == [("artifact", "server")]
    both = msgspec.structs.replace(first, subjects=(*first.subjects, *second.subjects))
    assert [(one.before, one.after) for one in compare(both, second)] == [("server", "server")]
    with pytest.raises(EvaluationError, match="no stage in common: artifact, server in one, checkpoint in the other"):
        compare(both, document(*queries, name="checkpoint"))


def test_reports_without_two_identities_in_common_are_refused():
    queries = random_queries(0)
    with pytest.raises(EvaluationError, match="at least two identities in both reports, got 1: are they of one"):
        compare(document(*queries[:4]), document(*queries))
    with pytest.raises(EvaluationError, match="got 0"):
        compare(document(*queries[:4]), document(*queries[4:]))


def test_other_rules_and_galleries_are_said():
    queries = random_queries(0)
    (found,) = compare(document(*queries), document(*queries, rule=Rule(cameras="any"), gallery=11))
    assert found.notes[0].startswith("The rules differ")
    assert found.notes[1] == "The galleries differ: 10 entries, then 11."


def test_queries_of_another_identity_are_other_queries():
    queries = [QueryFigures(f"#{place}", 1, str(place), 0.5, 1) for place in range(10)]
    others = [msgspec.structs.replace(one, pid=f"p{one.pid}") if int(one.pid) > 6 else one for one in queries]
    (found,) = compare(document(*queries), document(*others))
    assert (found.queries, found.only_before, found.only_after) == (7, 3, 3)


def test_other_labels_and_other_seeds_are_said():
    first = document(*random_queries(0))
    second = msgspec.structs.replace(first, digests={"labels": "b"}, seeds={"trials": 1})
    (found,) = compare(msgspec.structs.replace(first, digests={"labels": "a"}, seeds={"trials": 0}), second)
    assert found.notes == [
        "The queries or the gallery differ: they are other files, or other labels.",
        "Other galleries were drawn: the seeds are {'trials': 0}, then {'trials': 1}.",
    ]


def test_what_else_differs_is_said():
    queries = random_queries(0)
    before, after = document(*queries), document(*queries)
    facts = [replace(one.subjects[0], facts={"index": index}) for one, index in ((before, "flat"), (after, "rabitq"))]
    before, after = replace(before, subjects=(facts[0],)), replace(after, subjects=(facts[1],), digests={"labels": "x"})
    (found,) = compare(before, after)
    assert found.notes == [
        "What was scored differs: index flat -> rabitq.",
        "The queries or the gallery differ: they are other files, or other labels.",
    ]
