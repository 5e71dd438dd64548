import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from reidserve.datasets import path_to_text
from reidserve.errors import EvaluationError, OutputExistsError
from reidserve.evaluate import MARKET, Evaluation, Labelled, Labels, Rule, evaluate, evaluate_rankings
from reidserve.evaluate.metrics import average_precisions
from reidserve.evaluate.openset import open_set
from reidserve.evaluate.report import Document, Subject, losses, read_document, record, summarise_losses
from reidserve.evaluate.report.canvas import PAGE
from reidserve.evaluate.report.document import encode_document
from reidserve.evaluate.report.page import render, rule_in_words, write_report
from reidserve.evaluate.shown import choose_groups, show
from reidserve.evaluate.trials import evaluate_one_per_identity
from reidserve.index import Ranking
from tests.conftest import unit_rows, write_crops

NASTY = '<script>alert("1")</script>&.png'


def photographs(folder: Path) -> Labelled:
    """Crops of 12 identities by 3 cameras, of embeddings that find some of them; one file has a name to beware of."""
    paths = write_crops(folder, pids=12, camids=3)
    nasty = folder / NASTY.replace("/", "\N{FRACTION SLASH}")
    paths[0].rename(nasty)
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, 12, 16).repeat(3, axis=0) + unit_rows(rng, 36, 16)
    labels = Labels(
        [f"{place // 3:04}" for place in range(36)],
        [f"c{place % 3}" for place in range(36)],
        [path_to_text(path) for path in (nasty, *paths[1:])],
    )
    return Labelled(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return photographs(tmp_path_factory.mktemp("photographs") / "crops")


@pytest.fixture(scope="module")
def evaluation(images: Labelled) -> Evaluation:
    return evaluate(images, images, impostors=True)


def cut_short(images: Labelled) -> Evaluation:
    """The 5 best entries of each query."""
    scores = images.embeddings @ images.embeddings.T
    rows = np.argsort(-scores, axis=1)[:, :5]
    ranking = Ranking(np.take_along_axis(scores, rows, axis=1), rows)
    return evaluate_rankings([(slice(0, len(images)), ranking)], images.labels, images.labels, impostors=True)


def document(*subjects: Subject) -> Document:
    return Document(
        written="2026-02-03T04:05:06Z",
        dataset="/data/crops",
        layout="crops",
        protocol="market1501",
        rule=subjects[0].evaluation.rule,
        counts={"queries": 36, "gallery": 36},
        findings=("2 of 36 queries are <b>lost</b>",),
        subjects=tuple(record(subject) for subject in subjects),
        versions={"numpy": "2.0"},
        digests={"model.onnx": "ab" * 32},
        seeds={"trials": 7},
    )


def test_a_document_is_read_as_it_was_written(evaluation: Evaluation, images: Labelled, tmp_path: Path):
    written = document(Subject("artifact", {"engine": "x"}, evaluation), Subject("gallery", {}, cut_short(images)))
    (tmp_path / "report.json").write_bytes(encode_document(written))
    read = read_document(tmp_path / "report.json")
    assert encode_document(read) == encode_document(written)
    assert encode_document(read_document(tmp_path)) == encode_document(written)
    whole, cut = read.subjects
    assert (whole.figures.mAP, whole.figures.rank(1)) == (evaluation.metrics.mAP, evaluation.metrics.rank1)
    assert whole.open_set is not None
    assert list(whole.open_set.pairs) == list(open_set(evaluation).pairs) != []
    assert (cut.whole, cut.figures.mAP, cut.open_set, cut.cameras) == (False, None, None, ())
    assert cut.queries[0].average_precision is None


def test_nan_is_written_as_null(images: Labelled):
    data = json.loads(encode_document(document(Subject("gallery", {}, cut_short(images)))), parse_constant=pytest.fail)
    assert data["subjects"][0]["figures"]["mAP"] is None


def test_the_queries_of_a_document_give_its_means(evaluation: Evaluation):
    whole = record(Subject("artifact", {}, evaluation))
    assert np.mean([one.average_precision for one in whole.queries]) == pytest.approx(whole.figures.mAP)
    assert np.mean([one.first == 1 for one in whole.queries]) == pytest.approx(whole.figures.rank(1))


def test_queries_that_the_means_are_not_over_are_not_listed():
    query = Labelled(unit_rows(np.random.default_rng(0), 2, 4), Labels(["a", "x"], ["1", "1"], ["q0", None]))
    gallery = Labelled(unit_rows(np.random.default_rng(1), 2, 4), Labels(["a", "b"], ["2", "2"], ["g0", "g1"]))
    listed = record(Subject("features", {}, evaluate(query, gallery))).queries
    assert [(one.source, one.pid) for one in listed] == [("q0", "a")]
    listed = record(Subject("features", {}, evaluate(query, gallery, rule=Rule(queries="all")))).queries
    assert [(one.source, one.average_precision, one.first) for one in listed][1] == ("#1", 0, None)


def test_queries_of_trials_say_which(images: Labelled):
    drawn = evaluate_one_per_identity(images, rule=Rule(cameras="any"), trials=2)
    listed = record(Subject("features", {}, drawn)).queries
    assert [one.trial for one in listed] == [1] * 24 + [2] * 24
    expected = average_precisions(drawn.outcomes, "hits")
    assert [one.average_precision for one in listed] == expected.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data | {"format": 2}, "format"),
        (lambda data: data | {"more": 1}, "unknown field `more`"),
        (lambda data: {name: value for name, value in data.items() if name != "rule"}, "missing required field `rule`"),
        (lambda data: data | {"subjects": [data["subjects"][0] | {"whole": "yes"}]}, "whole"),
    ],
)
def test_what_is_no_report_is_refused_by_name(evaluation: Evaluation, tmp_path: Path, change, said):
    data = json.loads(encode_document(document(Subject("artifact", {}, evaluation))))
    (tmp_path / "report.json").write_text(json.dumps(change(data)))
    with pytest.raises(EvaluationError, match=f"report.json is no report that this version can read: .*{said}"):
        read_document(tmp_path)


def test_what_is_no_json_or_not_there_is_refused(tmp_path: Path):
    with pytest.raises(EvaluationError, match=r"expected a report's report\.json, there is no .*report\.json"):
        read_document(tmp_path)
    for data in (b"{", b"\xff", b'"\xff"', b""):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(EvaluationError, match=r"x\.json is no report"):
            read_document(tmp_path / "x.json")


def staged(name: str, evaluation: Evaluation, *, fewer: float = 0.0):
    subject = record(Subject(name, {}, evaluation))
    figures = msgspec.structs.replace(
        subject.figures,
        cmc=(subject.figures.cmc[0] - fewer, *subject.figures.cmc[1:]),
        mAP=None if subject.figures.mAP is None else subject.figures.mAP - fewer,
    )
    return msgspec.structs.replace(subject, figures=figures)


def test_nothing_is_lost_between_equal_stages(evaluation: Evaluation):
    found = losses([staged("server", evaluation), staged("checkpoint", evaluation), staged("features", evaluation)])
    assert [(loss.before, loss.after, loss.loses) for loss in found] == [("checkpoint", "server", False)]
    assert found[0].said == "From checkpoint to server: no difference."
    assert summarise_losses(found) == "Nothing is lost on the way from checkpoint to server."
    assert summarise_losses(losses([staged("server", evaluation)])) == ""


def test_the_stage_that_loses_is_named(evaluation: Evaluation):
    stages: list[tuple[str, float]] = [
        ("checkpoint", 0.0),
        ("artifact", 0.00009),
        ("gallery", 0.0115),
        ("server", 0.001),
    ]
    found = losses([staged(name, evaluation, fewer=fewer) for name, fewer in stages])
    assert [loss.loses for loss in found] == [False, True, False]
    assert found[1].mAP == pytest.approx(0.00009 - 0.0115)
    assert found[1].said == "From artifact to gallery: Rank-1 falls by 1.14 points and mAP falls by 1.14 points."
    assert found[2].said == "From gallery to server: Rank-1 rises by 1.05 points and mAP rises by 1.05 points."
    assert summarise_losses(found) == "Something is lost on the way: the gallery scores lower."


def test_a_stage_that_ranked_only_its_best_is_compared_by_rank_1_and_says_why(evaluation: Evaluation, images: Labelled):
    (loss,) = losses([staged("artifact", evaluation), staged("gallery", cut_short(images))])
    assert (loss.mAP, loss.rank1) == (None, 0)
    assert "Only Rank-1 is compared: the gallery did not rank the whole gallery, so it has no mAP." in loss.said


def test_stages_that_were_not_asked_the_same_say_so(evaluation: Evaluation, images: Labelled):
    fewer = evaluate(images.take(np.arange(30)), images)
    (loss,) = losses([staged("artifact", evaluation), staged("server", fewer)])
    assert "not asked the same: 36 queries of 36 entries, then 30 of 36." in loss.said


class Page(HTMLParser):
    """What a browser would make of a page: its elements with attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(evaluation: Evaluation, images: Labelled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    subjects = [
        Subject("artifact", {"engine": "</style><script>x"}, evaluation),
        Subject("gallery", {"index": "rabitq"}, cut_short(images)),
    ]
    shown = {group: show(evaluation, images, images, places) for group, places in choose_groups(evaluation, 12).items()}
    out = tmp_path_factory.mktemp("reports") / "report"
    write_report(out, document(*subjects), subjects, shown)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_a_report_is_a_page_and_a_document(folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.json"]
    assert [one.name for one in read_document(folder).subjects] == ["artifact", "gallery"]


def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing(page: Page):
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href", "xlink:href") or (value or "").startswith(
                ("data:image/jpeg;base64,", "#")
            )
    assert "url(http" not in page.text


def test_names_are_shown_as_they_are_and_never_become_markup(page: Page):
    assert "</style><script>x" in page.text
    assert "2 of 36 queries are <b>lost</b>" in page.text
    assert any(
        NASTY.replace("/", "\N{FRACTION SLASH}") in (attributes.get("alt") or "") for _, attributes in page.elements
    )


def test_a_page_says_the_figures(page: Page, evaluation: Evaluation):
    text = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())
    metrics = evaluation.metrics
    assert f"For {100 * metrics.rank1:.2f} % of 36 queries the very first hit was right (Rank-1, the artifact)" in text
    assert f"the mean average precision (mAP) is {100 * metrics.mAP:.2f} %" in text
    assert "Nothing is lost on the way from artifact to gallery." in text
    assert "the gallery did not rank the whole gallery" in text
    for line in (*rule_in_words(MARKET), "sha256: model.onnx", "ab" * 32, "seed: trials"):
        assert line in text


def test_each_hit_is_marked_in_words_as_well_as_colour(page: Page, evaluation: Evaluation, images: Labelled):
    shown = [
        one for places in choose_groups(evaluation, 12).values() for one in show(evaluation, images, images, places)
    ]
    verdicts: list[str] = [hit.verdict for one in shown for hit in one.hits]
    for verdict, mark in (("right", "✓ right"), ("wrong", "✗ wrong")):
        count = verdicts.count(verdict)
        assert sum(attributes.get("class") == f"crop {verdict}" for _, attributes in page.elements) == count > 0
        assert page.text.count(mark) == count + 1  # and the legend
    assert sum(tag == "img" for tag, _ in page.elements) == len(verdicts) + len(shown)


def test_cameras_stand_in_a_table(page: Page, evaluation: Evaluation):
    pairs = record(Subject("artifact", {}, evaluation)).cameras
    shares = [attributes["style"] for tag, attributes in page.elements if tag == "td" and "style" in attributes]
    assert shares == [f"--share: {pair.mAP:.3f}" for pair in pairs]
    assert len(shares) == 6


def test_figures_take_their_colours_from_the_page_and_share_no_names(folder: Path):
    text = (folder / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(figures) == 3
    assert "var(--series-0)" in figures[0]
    assert all("currentColor" in figure and "#0a0b" not in figure for figure in figures)
    names = [set(re.findall(r' id="([^"]*)"', figure)) for figure in figures]
    shared = set().union(*(one & other for one in names for other in names if one is not other))
    # Equal names are equal drawings: they are made of what they draw.
    for name in shared:
        drawings = {drawing for figure in figures for drawing in re.findall(rf'id="{name}"(.*?)/>', figure, re.DOTALL)}
        assert len(drawings) == 1, name


def test_the_same_report_is_the_same_bytes(evaluation: Evaluation):
    subjects = [Subject("features", {}, evaluation)]
    assert render(document(*subjects), subjects, {}) == render(document(*subjects), subjects, {})


def test_an_image_that_is_gone_is_named_in_its_place(images: Labelled, evaluation: Evaluation):
    labels = Labels(images.labels.pids, images.labels.camids, [f"/gone/{place}.jpg" for place in range(36)])
    gone = Labelled(images.embeddings, labels)
    subjects = [Subject("features", {}, evaluate(gone, gone))]
    page = Page(render(document(*subjects), subjects, {"best": show(subjects[0].evaluation, gone, gone, [0])}))
    assert "not readable" in page.text
    assert "0.jpg" in page.text
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_a_report_can_be_written_where_nothing_matches():
    part = Labelled(unit_rows(np.random.default_rng(0), 3, 4), Labels(["x", "y", None], [None] * 3, ["0", "1", "2"]))
    subjects = [Subject("features", {}, evaluate(part, part, impostors=True))]
    page = Page(render(document(*subjects), subjects, {"best": []}))
    assert "No query has a right image in the gallery" in " ".join(page.text.split())


def test_what_is_there_is_not_overwritten(folder: Path, evaluation: Evaluation):
    subjects = [Subject("artifact", {}, evaluation)]
    before = (folder / "index.html").read_bytes()
    with pytest.raises(OutputExistsError):
        write_report(folder, document(*subjects), subjects, {})
    assert (folder / "index.html").read_bytes() == before


def test_a_difference_too_small_to_be_a_loss_is_no_equality(evaluation: Evaluation):
    (loss,) = losses([staged("artifact", evaluation), staged("gallery", evaluation, fewer=5e-5)])
    assert loss.said == "From artifact to gallery: no difference beyond 0.01 points."
    assert not loss.loses


def test_more_curves_than_colours_are_told_apart_by_their_dashes():
    lines = [PAGE.line(place) for place in range(10)]
    assert len({(line["color"], str(line["linestyle"])) for line in lines}) == 10
