"""The studies as data, the published figures, and the tables made of results."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reidserve.errors import DatasetError, UsageError
from reidserve.export.study import PUBLISHED, SOURCES, STUDIES, Row, find_study, read_rows, write_page, write_rows
from reidserve.export.study.plan import plan_runs
from reidserve.export.study.sources import Sources
from reidserve.export.study.table import entries, trend, write_table

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "studies"

TRICKS = Row(
    study="tricks",
    scale="quick",
    data="synthetic-a",
    network="resnet18 at 64x32",
    start="pretrained on 160 synthetic persons",
    variant="control",
    repeat=1,
    seed=0,
    tested="ordinary",
    epoch=10,
    epochs=10,
)


def tricks(**figures: tuple[float, ...]) -> list[Row]:
    """The last epochs of variants by name, a mAP for each repeat."""
    return [
        replace(TRICKS, variant=name, repeat=number, seed=number - 1, mAP=value, rank1=value, rank5=0.9, rank10=0.95)
        for name, values in figures.items()
        for number, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("name", STUDIES)
def test_each_study_s_settings_read_and_each_variant_differs_from_the_control(name: str, scale, tmp_path: Path):
    study = STUDIES[name]
    runs = plan_runs(study, Sources(scale, tmp_path, tmp_path, (), tmp_path), tmp_path / name, repeat=2)
    untrained, control, *others = runs
    assert untrained.settings.init.pretrained == ""
    assert len(others) == len(study.variants) - 1
    assert len({run.path for run in runs}) == len(runs)
    assert {run.settings.seed for run in runs} == {study.seed + 1}
    for run in others:
        assert run.settings.differences(control.settings) or run.training != control.training or run.adaptation


def test_each_line_is_of_a_variant_and_each_published_line_is_a_line():
    for study in STUDIES.values():
        names = [line.name for line in study.lines]
        assert len(set(names)) == len(names)
        assert {line.variant for line in study.lines} == {variant.name for variant in study.variants}
        assert {line.against for line in study.lines} <= {*names, ""}
        published = PUBLISHED.get(study.name, {})
        assert published.keys() <= set(names)
        assert bool(published) == (study.name in SOURCES)
        assert all(len(run.split(" / ")) == len(study.figures) for one in published.values() for run in one.runs)


@pytest.mark.parametrize(
    ("study", "line", "runs"),
    [
        ("init", "after 10 %", [[0.0157, 0.353680, 0.537702, 0.625673, 0.214494]]),
        ("init", "after 40 %", [[0.0036, 0.592908, 0.764812, 0.814183, 0.395242]]),
        ("init", "after 41 %", [[0.0017, 0.9812, 0.0004, 0.9986]]),
        ("unfreeze", "layer4 too", [[95.24, 93.6, 93.7]]),
        ("unfreeze", "layer3 and layer4 too", [[95.81, 93.67, 93.9]]),
        ("freeze", "frozen, last epoch", [[11_176_512, 11_181_642, 34.40, 34.69]]),
        ("freeze", "unfrozen, first epoch", [[54.32, 69.41]]),
        ("freeze", "unfrozen, last epoch", [[74.02, 79.85]]),
        ("tricks", "control", [[83.5, 93.1, 97.7, 98.7], [83.2, 92.9, 97.7, 98.5]]),
        ("tricks", "class-centre initialisation", [[85.6, 94.0, 98.0, 98.7], [85.7, 94.4, 98.0, 98.9]]),
        ("tricks", "unit rows", [[76.8, 89.7, 95.8, 97.5], [77.8, 90.1, 95.3, 96.7]]),
        ("tricks", "temperature 1.0", [[31.7, 50.8, 72.9, 80.5]]),
        ("tricks", "temperature shrinking", [[62.4, 81.1, 92.9, 96.1]]),
        ("swap", "train ordinary, test swapped", [[45.7, 66.1, 81.4, 86.0]]),
        ("swap", "train swapped, test swapped", [[66.3, 83.8, 92.3, 94.4]]),
        ("transfer", "train swapped, test on the other", [[9.5, 19.4, 31.5, 37.8]]),
    ],
)
def test_published_figures_are_the_authors(study: str, line: str, runs):
    published = PUBLISHED[study][line]
    found = [published.figures(place) for place in range(len(STUDIES[study].figures))]
    assert [list(run) for run in zip(*(cells for cells in found if cells), strict=True)] == runs


def test_an_unknown_study_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"no study is called 'trick': did you mean 'tricks'\? There are 'init', "):
        find_study("trick")
    with pytest.raises(UsageError, match=r"no study is called 'everything'\. There are 'init', "):
        find_study("everything")


finite = st.one_of(st.none(), st.floats(0, 1e6))


@given(mean=finite, rank=finite, frozen=st.one_of(st.none(), st.integers(0, 10**9)), variant=st.text(min_size=1))
def test_rows_read_back_as_they_were_written(tmp_path_factory, mean, rank, frozen, variant):
    variant = "".join(variant.split()) or "x"
    row = replace(TRICKS, mAP=mean, rank1=rank, frozen=frozen, variant=variant)
    path = tmp_path_factory.mktemp("rows") / "results.csv"
    path.write_text(write_rows([row]), encoding="utf-8", newline="")
    (found,) = read_rows(path)
    assert found.mAP == (None if mean is None else pytest.approx(mean, rel=1e-5))
    assert found == replace(row, mAP=found.mAP, rank1=found.rank1)


def test_a_file_of_something_else_is_no_result(tmp_path: Path):
    (tmp_path / "results.csv").write_text("pid,camid\n1,2\n")
    with pytest.raises(DatasetError, match="holds no results of a study"):
        read_rows(tmp_path / "results.csv")


def test_the_table_has_means_half_ranges_and_the_authors_figures_marked_as_theirs():
    text = write_table(STUDIES["tricks"], tricks(control=(0.80, 0.82), **{"unit rows": (0.70, 0.74)}))
    assert "(scale: quick): synthetic-a, resnet18 at 64x32, 10 epochs" in text
    assert "weights: pretrained on 160 synthetic persons; seeds from 0, 2 runs each, ± half their range" in text
    assert "| published (Market-1501, ResNet-50): the authors' figures, not ours |" in text
    assert (
        "| unit rows | 72.0 ±2.0 / 72.0 ±2.0 / 90.0 ±0.0 / 95.0 ±0.0 "
        "| 76.8 / 89.7 / 95.8 / 97.5; 77.8 / 90.1 / 95.3 / 96.7 | as published: worse |"
    ) in text


def test_the_untrained_network_comes_first():
    rows = [*tricks(untrained=(0.1,)), *tricks(control=(0.8,))]
    assert [entry.name for entry in entries(STUDIES["tricks"], rows)] == ["untrained", "control"]
    assert entries(STUDIES["tricks"], rows)[0].ours[0] == "10.0"


def test_what_pretrained_weights_are_worth_stands_beside_lines_of_the_same_test_alone():
    before = "before training, from pretrained weights"
    for name, tested in (("tricks", "ordinary"), ("transfer", "other")):
        control = STUDIES[name].control.name
        logged = [replace(TRICKS, study=name, variant=control, epoch=epoch, mAP=0.4) for epoch in (0, 10)]
        scored = replace(TRICKS, study=name, variant=control, tested=tested, mAP=0.5)
        found = [entry.name for entry in entries(STUDIES[name], [*logged, scored])]
        assert (before in found) == (name == "tricks")  # transfer's own domain is what its runs log, not what it shows


def test_a_trend_is_a_difference_beyond_the_spread_of_either():
    assert trend([0.7, 0.74], [0.8, 0.82]) == -1
    assert trend([0.7, 0.71], [0.7, 0.82]) == 0
    assert trend([0.7, 0.82], [0.8, 0.82]) == 0
    assert trend([0.9], [0.8, 0.82]) == 1
    assert trend([], [0.8]) is None


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        ((0.70, 0.71), "as published: worse"),
        ((0.90, 0.91), "not as published: ours better, theirs worse; it may be that a small network"),
        ((0.80, 0.81), "not as published: ours no different beyond the spread, theirs worse; it may be that"),
    ],
)
def test_where_ours_goes_another_way_than_published_the_table_says_so_and_why_it_may(values, remark: str):
    rows = tricks(control=(0.80, 0.82), **{"no BatchNorm before the classifier": values})
    assert entries(STUDIES["tricks"], rows)[1].remark.startswith(remark)


def test_lines_of_one_variant_are_read_off_at_their_share_of_the_epochs():
    row = replace(TRICKS, study="init", variant="nothing initialised specially")
    rows = [replace(row, epoch=epoch, mAP=epoch / 100, loss=float(epoch)) for epoch in range(11)]
    found = {entry.name: entry for entry in entries(STUDIES["init"], rows)}
    assert [found[name].ours[0] for name in ("after 1 % of the epochs", "after 10 %", "after 30 %", "after 41 %")] == [
        *("1.0000", "1.0000", "3.0000", "5.0000")
    ]
    assert found["after 20 %"].remark == "as published: better"
    assert found["after 10 %"].remark == found["after 41 %"].remark == ""
    text = write_table(STUDIES["init"], rows)
    assert "| nothing initialised specially | 7 | 7.0000 | 7.0 |" in text


def test_the_page_has_the_table_the_curves_and_whose_figures_are_whose(tmp_path: Path):
    rows = tricks(control=(0.80, 0.82), **{"unit rows": (0.90, 0.91)})
    rows = [replace(row, epoch=epoch) for row in rows for epoch in (9, 10)]
    write_page(tmp_path / "study.html", STUDIES["tricks"], rows)
    page = (tmp_path / "study.html").read_text()
    assert "Training tricks, each alone" in page
    assert "Market-1501, ResNet-50" in page
    assert "76.8; 77.8" in page
    assert "90.5 ±0.5" in page
    assert page.count("<svg") >= 2
    assert not re.search(r"(src|href)=.https?://", page)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.csv")), ids=lambda path: path.stem)
def test_the_tables_of_the_docs_are_those_of_the_committed_results(path: Path):
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert write_table(STUDIES[path.stem], read_rows(path)).strip() in text
