"""CMC, mAP and mINP against the projects whose numbers people quote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from reidserve.evaluate import Evaluation, Labelled, Labels, Rule, evaluate, evaluate_scores
from reidserve.evaluate.metrics import (
    Formula,
    average_precisions,
    cmc,
    cmc_all_shots,
    first_ranks,
    inverse_negative_penalties,
    summarise,
)
from reidserve.evaluate.openset import accept
from reidserve.evaluate.outcomes import Outcomes

FORMULAS: tuple[Formula, ...] = ("hits", "trapezoid", "step")


@pytest.fixture(scope="module")
def cases(shared: Path) -> dict[str, Any]:
    every: dict[str, Any] = json.loads((shared / "data/goldens/metric_cases.json").read_text())
    return every


@pytest.fixture(scope="module")
def arrays(shared: Path) -> Mapping[str, np.ndarray]:
    with np.load(shared / "data/goldens/metric_random.npz") as file:
        return dict(file)


def texts(values) -> list[str]:
    return [str(value) for value in values]


def labels(pids, camids) -> Labels:
    return Labels(texts(pids), texts(camids), [None] * len(pids))


def by_distance(
    distances, case: Mapping[str, Any], *, queries: Literal["matchable", "all"] = "matchable"
) -> Evaluation:
    """A case whose distances are given; rounding to float32 keeps its order and its ties."""
    return evaluate_scores(
        [(slice(0, len(distances)), -np.array(distances, np.float32))],
        labels(case["q_pid"], case["q_cam"]),
        labels(case["g_pid"], case["g_cam"]),
        rule=Rule(queries=queries),
    )


def check(evaluation: Evaluation, expected: Mapping[str, Any], *, over_all: bool = False) -> None:
    """Every figure that the projects computed: torchreid, fast-reid, layumi, open-reid."""
    depth = expected["max_rank"]
    of_valid, of_all = (summarise(evaluation.outcomes, over_all=every, max_rank=depth) for every in (False, True))
    assert of_valid.cmc == pytest.approx(expected["torchreid"]["cmc"], abs=1e-6)
    assert of_valid.mAP == pytest.approx(expected["torchreid"]["mAP"], abs=1e-6)
    assert of_valid.mAP == pytest.approx(expected["fastreid"]["mAP"], abs=1e-6)
    assert of_valid.mINP == pytest.approx(expected["fastreid"]["mINP"], abs=1e-6)
    assert of_valid.queries == expected["fastreid"]["n_valid_queries"]
    layumi = expected["layumi"]
    assert of_valid.cmc == pytest.approx(layumi["cmc_over_valid_queries"], abs=1e-6)
    assert of_valid.mAP_trapezoid == pytest.approx(layumi["mAP_trapezoid_over_valid_queries"], abs=1e-6)
    assert of_all.cmc == pytest.approx(layumi["cmc_over_all_queries"], abs=1e-6)
    assert of_all.mAP_trapezoid == pytest.approx(layumi["mAP_trapezoid_over_all_queries"], abs=1e-6)
    assert (of_all.queries, of_valid.queries) == (layumi["n_queries"], layumi["n_valid_queries"])
    if (other := expected.get("open_reid_PCB")) is not None:
        valid = evaluation.outcomes.found > 0
        all_shots = cmc_all_shots(evaluation.outcomes, max_rank=depth)[valid].mean(axis=0)
        assert of_valid.cmc == pytest.approx(other["cmc_first_match"], abs=1e-6)
        assert all_shots == pytest.approx(other["cmc_allshots"], abs=1e-6)
        assert of_valid.mAP_step == pytest.approx(other["mAP_sklearn"], abs=1e-6)


PEERS = (
    "open_reid_only_distmat",
    "open_reid_duplicate_ids",
    "open_reid_duplicate_cams",
    "single_positive_at_rank_2",
    "junk_in_front",
    "same_camera_in_front",
    "one_of_two_queries_invalid",
)


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_case_gives_the_peers_figures(name: str, cases):
    (case,) = (case for case in cases["peer_cases"] if case["name"] == name)
    evaluation = by_distance(case["input"]["distmat"], case["input"])
    check(evaluation, case["computed_here"])
    source = case["expected_by_source"]
    if "cmc" in source:
        assert summarise(evaluation.outcomes, max_rank=len(source["cmc"])).cmc == pytest.approx(source["cmc"])
    if "ap_trapezoid" in source:
        assert evaluation.metrics.mAP == pytest.approx(source["ap_precision_at_hits"])
        assert evaluation.metrics.mAP_trapezoid == pytest.approx(source["ap_trapezoid"])


def test_ties_go_to_the_lower_gallery_place_and_step_takes_them_together(cases):
    for name in ("mmdet_reid_metric", "all_equal_distances"):
        (case,) = (case for case in cases["peer_cases"] if case["name"] == name)
        given = case["input"]
        if "features" in given:
            features = np.array(given["features"])
            squared = ((features[:, np.newaxis] - features[np.newaxis]) ** 2).sum(axis=2).round(12)
        evaluation = by_distance(given.get("distmat") or squared.tolist(), given)
        computed = case["computed_here_by_tie_policy"]
        check(evaluation, computed["lower_gallery_index_first"])
        if (grouped := computed.get("open_reid_PCB_sklearn_mAP_groups_ties")) is not None:
            assert evaluation.metrics.mAP_step == pytest.approx(grouped, abs=1e-6)


@pytest.mark.parametrize("name", ["R1", "R2"])
def test_features_give_the_figures_and_the_queries_of_the_projects(name: str, cases, arrays):
    (case,) = (case for case in cases["random_cases"] if case["name"] == name)
    parts = [
        Labelled(arrays[f"{name}_{part}f"], labels(arrays[f"{name}_{part}_pid"], arrays[f"{name}_{part}_cam"]))
        for part in "qg"
    ]
    evaluation = evaluate(*parts)
    check(evaluation, case["expected"])
    check_queries(evaluation, name, arrays)


@pytest.mark.parametrize(("name", "steps"), [("R3", 16), ("R5", 32)])
def test_distances_full_of_ties_give_the_figures_and_the_queries_of_the_projects(name: str, steps: int, cases, arrays):
    (case,) = (case for case in cases["random_cases"] if case["name"] == name)
    given = {key: arrays[f"{name}_{key}"] for key in ("q_pid", "q_cam", "g_pid", "g_cam")}
    evaluation = by_distance(arrays[f"{name}_dist_times_{steps}"] / steps, given)
    check(evaluation, case["expected_by_tie_policy"]["lower_gallery_index_first"])
    check_queries(evaluation, name, arrays)


def check_queries(evaluation: Evaluation, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    outcomes, valid = evaluation.outcomes, arrays[f"{name}_valid"]
    np.testing.assert_array_equal(outcomes.found > 0, valid)
    for values, key in (
        (average_precisions(outcomes, "hits"), "ap"),
        (inverse_negative_penalties(outcomes), "inp"),
        (average_precisions(outcomes, "trapezoid")[valid], "ap_trapezoid"),
    ):
        expected = arrays[f"{name}_{key}"]
        np.testing.assert_allclose(
            values[valid] if len(values) == len(valid) else values, expected[~np.isnan(expected)], atol=1e-6
        )


def outcomes_at(ranks: list[list[int]], length: int) -> Outcomes:
    """Outcomes whose right entries stand at these ranks of lists of that length, all scores unequal."""
    flat = np.array([rank for some in ranks for rank in some])
    return Outcomes(
        starts=np.cumsum([0, *map(len, ranks)]),
        rows=flat,
        scores=-flat.astype(np.float32),
        ranks=flat,
        reach=flat,
        missing=np.zeros(len(ranks), np.int64),
        counted=np.full(len(ranks), length),
        wrong=np.full(len(ranks), -1),
        wrong_scores=np.full(len(ranks), -np.inf, np.float32),
    )


@pytest.mark.parametrize("name", ["oml_exact_case", "mmpretrain_retrieval_ap"])
def test_lists_of_right_places_give_the_figures_of_each_query(name: str, cases):
    (case,) = (case for case in cases["peer_cases"] if case["name"] == name)
    given = case["input"]
    places = given.get("correct_positions_0_based") or given["relevant_positions_0_based"]
    length = given["list_length"]
    outcomes = outcomes_at([[place + 1 for place in some] for some in places], length)
    for query, expected in enumerate(case["computed_here"]["torchreid_fastreid_layumi_per_query"]):
        assert average_precisions(outcomes, "hits")[query] == pytest.approx(expected["ap"])
        assert average_precisions(outcomes, "step")[query] == pytest.approx(expected["ap"])
        assert average_precisions(outcomes, "trapezoid")[query] == pytest.approx(expected["ap_trapezoid"])
        assert inverse_negative_penalties(outcomes)[query] == pytest.approx(expected["inp"])
        if "cmc" in expected:
            assert cmc(outcomes, max_rank=length)[query].tolist() == expected["cmc"]
    source = case["expected_by_source"]
    for k, values in source.get("cmc", {}).items():
        assert cmc(outcomes, max_rank=length)[:, int(k) - 1].tolist() == values
    if "mAP_at_10_percent" in source:
        assert 100 * summarise(outcomes).mAP == pytest.approx(source["mAP_at_10_percent"])
    if "map_divided_by_hits_within_k" in source:
        assert average_precisions(outcomes, "hits") == pytest.approx(source["map_divided_by_hits_within_k"]["5"])


def test_relevance_masks_give_the_cmc_of_open_metric_learning(cases):
    (case,) = (case for case in cases["peer_cases"] if case["name"] == "oml_cmc_simple")
    for given, expected in zip(case["input"], case["expected_by_source"], strict=True):
        order = np.argsort(given["distmat"], axis=1, kind="stable")
        hits = np.take_along_axis(np.array(given["gt"]), order, axis=1)
        outcomes = outcomes_at([(np.flatnonzero(row) + 1).tolist() for row in hits], hits.shape[1])
        assert summarise(outcomes).rank(given["k"]) == pytest.approx(expected)


def test_first_ranks_are_those_of_pytorch_metric_learning(cases):
    (case,) = (case for case in cases["peer_cases"] if case["name"] == "pml_accuracy_calculator")
    hits = np.array(case["input"]["knn_labels"]) == np.array(case["input"]["query_labels"])[:, np.newaxis]
    outcomes = outcomes_at([(np.flatnonzero(row) + 1).tolist() for row in hits], hits.shape[1])
    expected = case["expected_by_source"]
    assert (1 / first_ranks(outcomes)).tolist() == pytest.approx(expected["reciprocal_rank_per_query"])
    assert summarise(outcomes, over_all=True).rank1 == pytest.approx(expected["precision_at_1"])


def test_a_threshold_lets_in_the_share_of_impostors_that_was_asked_for(cases):
    (case,) = (case for case in cases["peer_cases"] if case["name"] == "oml_fnmr_at_fmr")
    genuine, impostor = (
        -np.array(case["input"][name], np.float32) for name in ("positive_distances", "negative_distances")
    )
    for rate, missed in zip(case["input"]["fmr"], case["expected_by_source"]["fnmr"], strict=True):
        point = accept(genuine, impostor, rate)
        assert 1 - point.true == pytest.approx(missed)
        assert point.false <= rate


def test_all_projects_fail_where_nothing_can_match_and_we_say_so(cases):
    (case,) = (case for case in cases["peer_cases"] if case["name"] == "all_queries_invalid")
    assert all("Error" in text for text in case["computed_here"].values())
    metrics = by_distance(case["input"]["distmat"], case["input"]).metrics
    assert (metrics.queries, metrics.unmatchable, metrics.cmc) == (0, 1, [])
    assert np.isnan(metrics.mAP)
    over_all = by_distance(case["input"]["distmat"], case["input"], queries="all").metrics
    assert (over_all.queries, over_all.mAP, over_all.rank1) == (1, 0, 0)


def test_galleries_of_other_lengths_for_other_queries_are_no_error(cases):
    (ragged,) = (case for case in cases["peer_cases"] if case["name"] == "ragged_kept_lists")
    assert "ValueError" in ragged["computed_here"]["torchreid"]
    (case,) = (case for case in cases["peer_cases"] if case["name"] == ragged["input"]["see"])
    evaluation = by_distance(case["input"]["distmat"], case["input"])
    assert summarise(evaluation.outcomes, max_rank=5).cmc == pytest.approx(case["expected_by_source"]["cmc"])


def test_step_is_hits_where_no_scores_are_equal():
    rng = np.random.default_rng(0)
    ranks = [sorted(rng.choice(50, rng.integers(1, 20), replace=False) + 1) for _ in range(40)]
    outcomes = outcomes_at(ranks, 50)
    np.testing.assert_allclose(average_precisions(outcomes, "step"), average_precisions(outcomes, "hits"), atol=1e-12)


def test_three_formulas_by_hand():
    # Right at ranks 2 and 4. hits: (1/2 + 2/4) / 2. trapezoid: ((0/1 + 1/2) / 2 + (1/3 + 2/4) / 2) / 2.
    outcomes = outcomes_at([[2, 4]], 5)
    by_hand = {"hits": 0.5, "step": 0.5, "trapezoid": (0.25 + 5 / 12) / 2}
    for formula in FORMULAS:
        assert average_precisions(outcomes, formula)[0] == pytest.approx(by_hand[formula])
    assert inverse_negative_penalties(outcomes)[0] == 0.5
