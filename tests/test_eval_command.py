"""reid-eval as a person runs it, on real parts: an artifact, a gallery, a server, pictures and reports."""

import csv
import json
import shutil
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reidserve.commands.eval import app
from reidserve.commands.eval.options import Told
from reidserve.commands.export.converting import convert
from reidserve.datasets import read_dataset
from reidserve.embed import open_embedder
from reidserve.errors import CheckpointError, UsageError
from reidserve.evaluate import Rule, embed_crops
from reidserve.evaluate import evaluate as evaluate_features
from reidserve.evaluate.features import read_features
from reidserve.evaluate.report import read_document
from reidserve.evaluate.trials import evaluate_one_per_identity
from reidserve.index import Entry, Record, open_writer
from tests.conftest import Server, draw_crop, run_command, start_server, stop_server, unit_rows, write_crops


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in Market-1501's layout: 20 persons searched for, of whom one is on one camera only; junk."""
    root = tmp_path_factory.mktemp("data") / "market"
    for pid in range(1, 21):
        for camid in (1, 2, 3):
            part = "query" if camid == 1 else "bounding_box_test"
            save(root / part / f"{pid:04}_c{camid}s1_000000_00.png", pid, camid)
    save(root / "query" / "0099_c1s1_000000_00.png", 99, 1)
    save(root / "bounding_box_test" / "0099_c1s1_000001_00.png", 99, 1)
    save(root / "bounding_box_test" / "-1_c1s1_000001_00.png", 3, 1)
    for frame in range(61):
        save(root / "bounding_box_test" / f"0000_c2s1_{frame:06}_00.png", 200 + frame, 2)
    return root


def save(path: Path, pid: int, camid: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_crop(pid, camid)).save(path)


@pytest.fixture(scope="module")
def built(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "test.gallery"
    result = run_command("reid-index", "build", data / "bounding_box_test", "--model", model, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def serving(model: Path, built: Path):
    running = start_server("--model", model, "--gallery", built, "--read-only")
    yield running
    assert stop_server(running) == 0


def evaluate(*arguments: object) -> dict:
    result = run_command("reid-eval", *arguments, "--json")
    assert result.returncode == 0, result.stderr + result.stdout
    found: dict = json.loads(result.stdout)
    return found


def test_artifact_gallery_and_server_stand_side_by_side_and_agree_to_the_last_digit(
    data: Path, model: Path, built: Path, serving: Server, tmp_path: Path
):
    report = tmp_path / "report"
    found = evaluate(data, "--model", model, "--gallery", built, "--server", serving.target, "--report", report)
    assert [one["name"] for one in found["subjects"]] == ["artifact", "gallery", "server"]
    artifact, gallery, served = (one["figures"] for one in found["subjects"])
    assert artifact == gallery == served
    assert (artifact["queries"], artifact["unmatchable"]) == (20, 1)
    assert 0.3 < artifact["mAP"] < 1
    assert found["losses"] == ["From artifact to gallery: no difference.", "From gallery to server: no difference."]
    assert found["counts"]["gallery"] == 103
    assert "1 of 21 queries have a pid that the gallery holds on their own camera only" in found["findings"][0]
    document = read_document(report)
    assert [one.figures.mAP for one in document.subjects] == [artifact["mAP"]] * 3
    queries = [{(one.source, one.average_precision) for one in subject.queries} for subject in document.subjects]
    assert queries[0] == queries[1] == queries[2]
    page = (report / "index.html").read_text()
    assert "<img" in page
    assert found["wrote"] == {"report": str(report)}


def test_people_read_a_table_and_what_was_written(data: Path, model: Path, tmp_path: Path):
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "png", "json")}
    result = run_command(
        *("reid-eval", data, "--model", model, "--per-query", files["csv"], "--picture", files["png"]),
        *("--threshold", files["json"], "--false-alarms", "0.2", "--rerank", "--k1", "4", "--k2", "2", "--expand", "2"),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[-3:] == ["artifact", "artifact, re-ranked", "artifact, expanded"]
    assert [line.split()[0] for line in lines[1:8]] == ["Rank-1", "Rank-5", "Rank-10", "mAP", "mAP,", "mAP,", "mINP"]
    assert any("20 queries scored, 1 without a right image left out, in a gallery of 103" in line for line in lines)
    for path in files.values():
        assert any(line.startswith("wrote") and str(path) in line for line in lines)
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert len(rows) == 21
    assert sum(row["matchable"] == "False" for row in rows) == 1
    with Image.open(files["png"]) as picture:
        assert picture.size[0] > 500
    threshold = json.loads(files["json"].read_text())
    assert (threshold["criterion"], threshold["rate"], threshold["genuine"]) == ("search", 0.2, 20)
    assert threshold["dataset"] == str(data)
    searches = [float(row["best_wrong_score"]) for row in rows if row["matchable"] == "True"]
    assert np.mean(np.array(searches) >= threshold["score"]) == 0.2
    reached = [row["first_rank"] == "1" and float(row["best_right_score"]) >= threshold["score"] for row in rows]
    assert threshold["measured"] == sum(reached) / 20
    said = next(line for line in lines if line.startswith("wrote threshold"))
    assert f": a score of {threshold['score']:.4f} or more, which at most 20 % of searches for someone who is" in said


def test_a_threshold_that_was_calibrated_is_what_a_server_answers_by(
    data: Path, model: Path, built: Path, tmp_path: Path
):
    path = tmp_path / "threshold.json"
    evaluate(data, "--model", model, "--threshold", path, "--false-alarms", "0.1", "--per", "pair")
    running = start_server("--model", model, "--gallery", built, "--threshold", path)
    try:
        query = data / "query/0003_c1s1_000000_00.png"
        answer = json.loads(run_command("reid-search", query, "--server", running.target, "--json").stdout)
    finally:
        assert stop_server(running) == 0
    score = json.loads(path.read_text())["score"]
    assert answer["threshold"] == score
    assert answer["match"] == (answer["hits"][0]["score"] >= score)


def test_an_index_that_may_miss_an_entry_gives_rank_k_only_here_and_on_a_server(
    data: Path, model: Path, built: Path, tmp_path: Path
):
    large = tmp_path / "large.gallery"
    shutil.copytree(built, large)
    strangers = unit_rows(np.random.default_rng(0), 9000, 24)
    with open_writer(large) as writer:
        writer.upsert([Record(Entry(f"s{place}", "0"), bytes(32), row) for place, row in enumerate(strangers)])
    running = start_server("--model", model, "--gallery", large, "--index", "rabitq")
    stages = ("--model", model, "--gallery", large, "--index", "rabitq", "--server", running.target)
    try:
        found = evaluate(data, *stages)
        files = ("--per-query", tmp_path / "q.csv", "--threshold", tmp_path / "t.json", "--per", "pair")
        said = run_command("reid-eval", data, *stages, *files).stdout
    finally:
        assert stop_server(running) == 0
    artifact, gallery, served = found["subjects"]
    assert [one["whole"] for one in found["subjects"]] == [True, False, False]
    assert served["facts"]["index"] == gallery["facts"]["index"] == "rabitq"
    assert served["figures"] == gallery["figures"]
    assert served["figures"]["mAP"] is None
    assert len(served["figures"]["cmc"]) == 50
    assert 0.2 < served["figures"]["cmc"][0] <= artifact["figures"]["cmc"][0]
    assert said.count("may miss an entry: Rank-k is what it finds, and there is no mAP") == 2
    assert "9000 are none of these" in found["findings"][-1]
    # Of the furthest stage that ranked all it holds.
    rows = list(csv.DictReader((tmp_path / "q.csv").read_text().splitlines()))
    precisions = [float(row["average_precision"]) for row in rows if row["average_precision"]]
    assert np.mean(precisions) == pytest.approx(artifact["figures"]["mAP"])
    threshold = json.loads((tmp_path / "t.json").read_text())
    assert threshold["identity"] == artifact["facts"]["identity"]
    assert (threshold["criterion"], threshold["genuine"], threshold["impostors"]) == ("pair", 40, 20 * 100 + 101)


def test_entries_that_the_dataset_does_not_have_are_told(data: Path, model: Path, built: Path, tmp_path: Path):
    part = tmp_path / "part"
    for name in ("query", "bounding_box_test"):
        (part / name).mkdir(parents=True)
        for path in (data / name).iterdir():
            if not path.name.startswith("0000"):
                (part / name / path.name).symlink_to(path)
    found = evaluate(part, "--model", model, "--gallery", built)
    assert "61 are none of these" in found["findings"][-1]


def test_features_of_anyones_model_are_scored(tmp_path: Path):
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(10), 4)
    features = np.eye(10)[pids] + 0.35 * rng.standard_normal((40, 10))
    arrays: dict[str, Any] = {"features": 3 * features, "pids": pids, "camids": np.tile([1, 2], 20)}
    np.savez(
        tmp_path / "f.npz",
        **{f"{part}_{name}": array for part in ("query", "gallery") for name, array in arrays.items()},
    )
    found = evaluate(tmp_path / "f.npz")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    precisions = []
    for place in range(40):
        others = [row for row in range(40) if not (pids[row] == pids[place] and row % 2 == place % 2)]
        ranked = sorted(others, key=lambda row: -float(unit[place] @ unit[row]))
        ranks = [rank for rank, row in enumerate(ranked, start=1) if pids[row] == pids[place]]
        precisions.append(np.mean([hit / rank for hit, rank in enumerate(ranks, start=1)]))
    assert found["subjects"][0]["figures"]["mAP"] == pytest.approx(np.mean(precisions), abs=1e-6)
    drawn = evaluate(tmp_path / "f.npz", "--protocol", "vehicleid", "--seed", "3")
    long = evaluate(tmp_path / "f.npz", "--max-rank", "70")["subjects"][0]["figures"]["cmc"]
    assert (len(long), long[:50], long[-1]) == (70, found["subjects"][0]["figures"]["cmc"], 1.0)
    assert (drawn["subjects"][0]["trials"], drawn["subjects"][0]["gallery"], drawn["seeds"]) == (10, 10, {"trials": 3})


def test_the_rule_the_seed_and_the_number_of_trials_are_those_that_were_said(tmp_path: Path):
    rng = np.random.default_rng(1)
    sizes = {"query": 30, "gallery": 90}
    arrays: dict[str, Any] = {}
    for part, size in sizes.items():
        arrays[f"{part}_features"] = rng.standard_normal((size, 6))
        arrays[f"{part}_pids"] = rng.integers(-1, 12, size)
        arrays[f"{part}_camids"] = rng.integers(0, 3, size)
    np.savez(tmp_path / "f.npz", **arrays)
    query, gallery = read_features(tmp_path / "f.npz")
    for said, rule in (
        (["--cameras", "cross", "--all-queries"], Rule(cameras="cross", queries="all")),
        (["--junk", "--cameras", "any"], Rule(cameras="any", junk=True)),
    ):
        found = evaluate(tmp_path / "f.npz", *said)
        assert Rule(**found["rule"]) == rule
        expected = evaluate_features(query, gallery, rule=rule).metrics.mAP
        assert found["subjects"][0]["figures"]["mAP"] == pytest.approx(expected)
    found = evaluate(tmp_path / "f.npz", "--protocol", "vehicleid", "--seed", "5", "--trials", "2", "--no-distractors")
    drawn = evaluate_one_per_identity(gallery, rule=Rule(distractors=False), trials=2, seed=5)
    assert not found["rule"]["distractors"]
    assert found["subjects"][0]["figures"]["mAP"] == pytest.approx(drawn.metrics.mAP)


def test_mirror_images_are_embedded_too_where_that_is_said(data: Path, model: Path):
    (found,) = evaluate(data, "--model", model, "--flip")["subjects"]
    dataset = read_dataset(data)
    query, gallery, _ = embed_crops(dataset.query, dataset.gallery, open_embedder(model), flip=True)
    assert found["figures"]["mAP"] == pytest.approx(evaluate_features(query, gallery).metrics.mAP)
    plain = embed_crops(dataset.query, dataset.gallery, open_embedder(model))[:2]
    assert found["figures"]["mAP"] != pytest.approx(evaluate_features(*plain).metrics.mAP, abs=1e-6)


def test_two_reports_are_compared_with_intervals(data: Path, model: Path, other_model: Path, tmp_path: Path):
    # The same dataset in another place, as on another machine.
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere/market")
    for name, which, root in (("a", model, data), ("b", other_model, elsewhere)):
        evaluate(root, "--model", which, "--report", tmp_path / name)
    (found,) = json.loads(run_command("reid-eval", "compare", tmp_path / "a", tmp_path / "b", "--json").stdout)[
        "comparisons"
    ]
    documents = [read_document(tmp_path / name) for name in "ab"]
    assert (found["queries"], found["only_before"], found["only_after"]) == (20, 0, 0)
    identities = [document.subjects[0].facts["identity"][:40] for document in documents]
    assert found["notes"] == [f"What was scored differs: identity {identities[0]} -> {identities[1]}."]
    before, after = (document.subjects[0].figures.mAP for document in documents)
    assert before is not None
    assert after is not None
    assert found["mAP"]["change"] == pytest.approx(after - before)
    assert found["mAP"]["low"] <= found["mAP"]["change"] <= found["mAP"]["high"]
    said = run_command("reid-eval", "compare", tmp_path / "a/report.json", tmp_path / "a").stdout
    assert "no query differs" in said


def test_multi_query_asks_with_the_mean_of_all_images_of_a_query(data: Path, model: Path, tmp_path: Path):
    root = tmp_path / "market"
    root.mkdir()
    for part in ("query", "bounding_box_test"):
        (root / part).symlink_to(data / part)
    for pid in (*range(1, 21), 99):
        for frame in range(3):
            (root / "gt_bbox").mkdir(exist_ok=True)
            crop = draw_crop(pid, 1, frame=frame)
            Image.fromarray(crop).save(root / "gt_bbox" / f"{pid:04}_c1s1_00000{frame}_00.png")
    one, several = evaluate(root, "--model", model), evaluate(root, "--model", model, "--multi-query")
    assert several["protocol"] == "market1501, multi-query"
    assert one["subjects"][0]["figures"]["queries"] == several["subjects"][0]["figures"]["queries"] == 20
    assert one["subjects"][0]["figures"]["mAP"] != several["subjects"][0]["figures"]["mAP"]


def test_a_dataset_that_cannot_match_is_a_clear_answer_and_nothing_is_written(model: Path, tmp_path: Path):
    write_crops(tmp_path / "d/query", pids=2, camids=1)
    write_crops(tmp_path / "d/bounding_box_test", pids=2, camids=1, frames=2)
    report = tmp_path / "report"
    result = run_command("reid-eval", tmp_path / "d", "--model", model, "--report", report)
    assert result.returncode == 1
    assert "none of 2 queries has a right entry in the gallery of 4" in result.stderr
    assert "own camera only" in result.stderr
    assert not report.exists()


def test_an_unreadable_query_is_left_out_of_every_stage_and_named(
    data: Path, model: Path, serving: Server, tmp_path: Path
):
    root = tmp_path / "market"
    (root / "query").mkdir(parents=True)
    for path in (data / "query").iterdir():
        (root / "query" / path.name).symlink_to(path)
    (root / "bounding_box_test").symlink_to(data / "bounding_box_test")
    (root / "query" / "0005_c3s1_000000_00.png").write_text("torn")
    result = run_command("reid-eval", root, "--model", model, "--server", serving.target, "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert {Path(name).name for name, _ in found["failures"]} == {"0005_c3s1_000000_00.png"}
    artifact, served = (one["figures"] for one in found["subjects"])
    assert artifact == served


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gallery", "g"], "name the artifact too"),
        (["--server-gallery", "g"], "names a gallery of --server"),
        (["--flip", "--model", "m", "--gallery", "g"], "leave out --flip"),
        (["--false-alarms", "0"], "between 0 and 1"),
        (["--per-query", "q.txt"], ".csv or .parquet"),
        (["--report", "."], "something at"),
        (["--picture", "nowhere/p.png"], "a folder that is there"),
        (["--trials", "0"], "at least 1"),
        (["--max-rank", "0"], "at least 10"),
        (["--protocol", "vehicleid", "--rerank"], "are of market1501"),
        (["--protocol", "vehicleid", "--server", "localhost:1"], "is ranked as it stands"),
        (["--expand", "-1"], "number of hits"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_done(arguments, message, data: Path, tmp_path: Path):
    result = run_command("reid-eval", data, *arguments, cwd=tmp_path)
    assert (result.returncode, list(tmp_path.iterdir())) == (2, [])
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rerank", "--k1", "0"], "k1 must be at least 1"),
        (["--expand", "2", "--alpha", "-1"], "--alpha must be 0 or more"),
        (["--trials", "3"], "--trials is of cuhk03-single-shot and vehicleid"),
        (["--size", "64x32"], "--size would tell of a --checkpoint"),
        (["--index", "flat"], "--index is how a --gallery is searched"),
        (["--flip", "--threshold", "t.json"], "leave out --flip"),
        (["--checkpoint", "c.pth", "--threshold", "t.json"], "of an artifact's scores"),
        (["--server", "localhost:1", "--picture", "p.png"], "images embedded here"),
        (["--protocol", "vehicleid", "--picture", "p.png"], "ranked whole"),
        (["--picture", "p.json", "--threshold", "./p.json"], "--threshold would be written over --picture"),
    ],
)
def test_what_would_fail_after_hours_or_do_nothing_is_refused_too(
    arguments, message, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        app([str(data), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_told_of_as_reid_export_is():
    others = {
        *(
            "model",
            "checkpoint",
            "onnx",
            "out",
            "output",
            "flip",
            "images",
            "wanted",
            "gate",
            "force",
            "triton",
            "json",
        ),
    }
    assert {field.name for field in fields(Told)} == signature(convert).parameters.keys() - others


def test_what_a_checkpoint_does_not_tell_is_asked_for(data: Path, tmp_path: Path):
    torch = pytest.importorskip("torch", reason="needs reidserve[train]")
    from tests.states import strong

    path = tmp_path / "weights.pth"
    torch.save(strong(), path)
    asked = [str(data), "--checkpoint", str(path), "--size", "64x32", "--last-stride", "1", "--stem-pool", "padded"]
    with pytest.raises(CheckpointError, match=r"Say --resize bilinear .* or bicubic \(dmt\)"):
        app([*asked, "--stem-relu"])
    with pytest.raises(CheckpointError, match="stem-pool padded"):
        app([*asked[:5], "--resize", "bicubic"])


def test_features_are_not_written_over(tmp_path: Path):
    path = tmp_path / "f.npz"
    path.write_bytes(b"precious")
    result = run_command("reid-eval", path, "--picture", path)
    assert result.returncode == 2
    assert "would be written over the dataset" in result.stderr
    assert path.read_bytes() == b"precious"


def test_a_file_that_cannot_be_written_takes_no_figures_with_it(data: Path, model: Path, tmp_path: Path):
    threshold, table = tmp_path / "t.json", tmp_path / "q.csv"
    arguments = (data, "--model", model, "--threshold", threshold, "--false-alarms", "0.01", "--per-query", table)
    result = run_command("reid-eval", *arguments)
    assert result.returncode == 1
    assert f"{threshold} is not written: 20 searches cannot show a false alarm rate of 0.01" in result.stderr
    assert "20 queries scored" in result.stdout
    assert (threshold.exists(), table.exists()) == (False, True)
    found = json.loads(run_command("reid-eval", *arguments, "--json").stdout)
    assert found["wrote"] == {"per query": str(table)}
    assert [name for name, _ in found["unwritten"]] == [str(threshold)]


def test_a_threshold_names_the_model_whose_scores_it_is_of(
    data: Path, other_model: Path, model: Path, built: Path, tmp_path: Path
):
    large = tmp_path / "large.gallery"
    shutil.copytree(built, large)
    strangers = unit_rows(np.random.default_rng(0), 9000, 24)
    with open_writer(large) as writer:
        writer.upsert([Record(Entry(f"s{place}", "0"), bytes(32), row) for place, row in enumerate(strangers)])
    running = start_server("--model", model, "--gallery", large, "--index", "rabitq")
    path = tmp_path / "t.json"
    try:
        # The server answers its best hits only, so the threshold is of the artifact's scores.
        found = evaluate(
            *(data, "--model", other_model, "--server", running.target, "--threshold", path, "--false-alarms", "0.1")
        )
    finally:
        assert stop_server(running) == 0
    artifact, served = found["subjects"]
    assert json.loads(path.read_text())["identity"] == artifact["facts"]["identity"] != served["facts"]["identity"]
    assert "Different models are compared" in found["findings"][-1]


def test_vehicleid_says_where_queries_take_no_part(data: Path, model: Path):
    found = evaluate(data, "--model", model, "--protocol", "vehicleid", "--trials", "2")
    assert found["findings"] == ["vehicleid draws queries too from the 103 gallery images: the 21 queries take no part"]
