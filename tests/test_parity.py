"""The gate on embeddings that are written down, so that every query's figures are known beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reidserve.datasets import Crop
from reidserve.embed import Batch, Embedding, decode
from reidserve.errors import ArtifactError, EmbeddingError, EvaluationError
from reidserve.evaluate import digest_labels, labels_of
from reidserve.evaluate.comparison import bootstrap
from reidserve.export.derive.record import decode_record, encode_record
from reidserve.export.parity import (
    DEFAULT_BOUNDS,
    Bounds,
    Candidate,
    Parity,
    Row,
    measure,
    table_lines,
)
from reidserve.export.parity.bounds import FEWEST_IDENTITIES, Change, judge
from tests.conftest import unit_rows

IDENTITIES = 24


@dataclass
class Written:
    """An embedder that looks its answers up, by the number that an image shows."""

    rows: NDArray[np.float32]

    def prepare(self, data: bytes) -> NDArray[np.uint8]:
        return decode(data)

    def embed_each(self, batch: Batch) -> Sequence[Embedding | EmbeddingError]:
        found = self.rows[batch[:, 0, 0, 0].astype(int)]
        return [row if np.isfinite(row).all() else EmbeddingError("the model gave NaN") for row in found]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 0.png to 249.png, each of its number."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(250):
        Image.new("RGB", (1, 1), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def crops(folder: Path, numbers: Sequence[int], *, camid: str, labelled: bool = True) -> list[Crop]:
    """Images whose pid is their number modulo the identities."""
    return [Crop(folder / f"{number}.png", str(number % IDENTITIES) if labelled else None, camid) for number in numbers]


def queries(folder: Path, **choices) -> list[Crop]:
    return crops(folder, range(2 * IDENTITIES), camid="1", **choices)


def entries(folder: Path, **choices) -> list[Crop]:
    return crops(folder, range(2 * IDENTITIES, 6 * IDENTITIES), camid="2", **choices)


def embeddings(noise: float, *, seed: int = 1) -> NDArray[np.float32]:
    """Vectors of 250 images, near those of their identity and moved by some noise."""
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, IDENTITIES, 12)[np.arange(250) % IDENTITIES] + 0.9 * unit_rows(rng, 250, 12)
    moved = rows + noise * unit_rows(np.random.default_rng(seed), 250, 12)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def reference(noise: float = 0) -> Candidate:
    return Candidate("fp32/plain", "fp32", Written(embeddings(noise)))


def candidate(rows: NDArray[np.float32], name: str = "int8/plain") -> Candidate:
    return Candidate(name, "int8", Written(rows))


def average_precisions(query: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.float64]:
    """By a plain loop: image q against images g, all from other cameras."""
    found = []
    for place, vector in enumerate(query):
        order = np.argsort(-(gallery @ vector), kind="stable")
        right = np.flatnonzero(order % IDENTITIES == place % IDENTITIES) + 1
        found.append(np.mean(np.arange(1, len(right) + 1) / right))
    return np.array(found)


def nearest(query: NDArray[np.float32], gallery: NDArray[np.float32], k: int) -> list[set[int]]:
    return [set(np.argsort(-(gallery @ vector))[:k].tolist()) for vector in query]


def test_each_figure_is_that_of_a_plain_loop_in_both_galleries(images: Path):
    before, after = embeddings(0), embeddings(0.3)
    found = measure(reference(), [candidate(after)], queries(images), entries(images), samples=2000, seed=3)
    parts = [slice(0, 2 * IDENTITIES), slice(2 * IDENTITIES, 6 * IDENTITIES)]
    (query, gallery), (moved, moved_gallery) = ([rows[part] for part in parts] for rows in (before, after))
    first, own, mixed = found.rows
    precisions = average_precisions(query, gallery)
    assert first.mAP == pytest.approx(precisions.mean())
    for row, rows in ((own, moved_gallery), (mixed, gallery)):
        changes = 100 * (average_precisions(moved, rows) - precisions)
        assert row.mAP == pytest.approx(average_precisions(moved, rows).mean())
        assert row.change == pytest.approx(changes.mean(), abs=1e-6)
        by_identity = changes.reshape(2, IDENTITIES).mean(axis=0)
        drawn = np.random.default_rng(3).integers(IDENTITIES, size=(2000, IDENTITIES))
        # Identities stand in the order of their names.
        by_identity = by_identity[np.argsort([str(pid) for pid in range(IDENTITIES)])]
        assert (row.low, row.high) == pytest.approx(
            np.quantile(by_identity[drawn].mean(axis=1), (0.025, 0.975)).tolist(), abs=1e-6
        )
        for k, share in ((1, row.top1), (10, row.top10)):
            pairs = zip(nearest(query, gallery, k), nearest(moved, rows, k), strict=True)
            assert share == pytest.approx(np.mean([len(a & b) / k for a, b in pairs]))
    cosines = np.vecdot(before.astype(np.float64), after.astype(np.float64))
    assert own.cosine_min == pytest.approx(cosines[: 6 * IDENTITIES].min(), abs=1e-6)
    assert mixed.cosine_min == pytest.approx(cosines[: 2 * IDENTITIES].min(), abs=1e-6)
    assert mixed.cosine_mean == pytest.approx(cosines[: 2 * IDENTITIES].mean(), abs=1e-6)
    assert (own.mixed, mixed.mixed, own.top1 < 1, own.top1 != mixed.top1) == (False, True, True, True)
    assert (found.queries, found.gallery, found.identities) == (2 * IDENTITIES, 4 * IDENTITIES, IDENTITIES)


def test_a_twin_changes_exactly_nothing_and_passes(images: Path):
    found = measure(reference(), [candidate(embeddings(0))], queries(images), entries(images))
    for row in found.rows[1:]:
        assert (row.change, row.low, row.high, row.cosine_min, row.top1, row.top10) == (0, 0, 0, 1, 1, 1)
        assert row.mAP == found.rows[0].mAP
    assert found.refusals() == []
    assert [line for line in table_lines(found) if "REFUSED" in line] == []


def test_two_runs_are_equal_bytes_and_another_seed_moves_the_interval_alone(images: Path):
    every = [
        measure(reference(), [candidate(embeddings(0.3))], queries(images), entries(images), samples=500, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert encode_record((every[0],)) == encode_record((every[1],)) != encode_record((every[2],))
    assert every[0].rows[1].change == every[2].rows[1].change


BOUNDS = Bounds(points=0.5, cosine=0.9)


def judged(points: float, low: float, high: float, *, identities: int = 100, cosine: float = 1) -> list[str]:
    return judge(BOUNDS, cosine=cosine, change=Change(points, low, high, identities))


@pytest.mark.parametrize(
    ("passing", "failing", "said"),
    [
        ((-0.25, -0.5, 0.0), (-0.25, -0.500001, -0.1), "may be lost"),
        ((-0.5, -0.5, -0.5), (-0.500001, -0.500001, -0.5), "are lost"),
        ((0.0, -0.25, 0.25), (0.0, -0.25, 0.250001), "too few queries prove nothing"),
        ((3.0, 2.75, 3.25), (3.0, 2.5, 3.5), "too few queries prove nothing"),
    ],
)
def test_a_change_passes_up_to_the_bound_and_not_beyond(
    passing: tuple[float, float, float], failing: tuple[float, float, float], said: str
):
    assert judged(*passing) == []
    (reason,) = judged(*failing)
    assert said in reason
    assert "0.5" in reason


def test_a_cosine_passes_down_to_the_floor_and_identities_down_to_the_fewest():
    assert judged(0, 0, 0, cosine=0.9) == judged(0, 0, 0, identities=FEWEST_IDENTITIES) == []
    assert "0.899999" in judged(0, 0, 0, cosine=0.899999)[0]
    assert f"{FEWEST_IDENTITIES - 1} identities" in judged(0, 0, 0, identities=FEWEST_IDENTITIES - 1)[0]
    assert judge(BOUNDS, cosine=0.9, change=None) == []
    assert len(judge(BOUNDS, cosine=0.8, change=None)) == 1


def test_what_is_no_number_is_refused():
    nan = float("nan")
    assert len(judged(nan, nan, nan, cosine=nan)) == 3


def test_an_interval_too_wide_says_how_many_identities_would_do():
    """Those of one kind, 50 and 200 of them: four times the identities, half the width."""
    changes = np.tile(np.random.default_rng(0).standard_normal(50), 4)
    few, many = (bootstrap(changes[:count], np.arange(count), samples=10_000, seed=0) for count in (50, 200))
    (said,) = judge(Bounds(points=many[1] - many[0], cosine=0.9), cosine=1, change=Change(0, 0, few[1] - few[0], 50))
    assert int(said.split("about ")[1].split()[0]) == pytest.approx(200, rel=0.1)


def test_the_fewest_identities_show_at_95_per_cent_what_one_in_seven_suffers():
    assert (1 - 1 / 7) ** FEWEST_IDENTITIES < 0.05 < (1 - 1 / 7) ** (FEWEST_IDENTITIES - 2)


@pytest.mark.parametrize(("bound", "passes"), [(50, True), (49.999, False)])
def test_a_loss_that_every_query_shares_is_known_exactly_and_held_to_the_bound(
    images: Path, bound: float, passes: bool
):
    """Each query's one right entry falls behind a wrong one: from AP 1 to 1/2."""
    asked = crops(images, range(IDENTITIES), camid="1")
    held = [
        *crops(images, range(IDENTITIES, 2 * IDENTITIES), camid="2"),
        *(Crop(images / f"{number}.png", "0000", "2") for number in range(2 * IDENTITIES, 3 * IDENTITIES)),
    ]
    before = np.zeros((3 * IDENTITIES, 2 * IDENTITIES), np.float32)
    for number, row in enumerate(before):
        row[number % IDENTITIES] = (1, 0.9, 0.8)[number // IDENTITIES]
        row[number % IDENTITIES + IDENTITIES] = np.sqrt(1 - row.max() ** 2)
    after = np.concatenate([before[:IDENTITIES], before[2 * IDENTITIES :], before[IDENTITIES : 2 * IDENTITIES]])
    bounds = {**DEFAULT_BOUNDS, "int8": Bounds(points=bound, cosine=0.5)}
    found = measure(reference_of(before), [candidate(after)], asked, held, bounds=bounds)
    own, mixed = found.rows[1:]
    assert (own.change, own.low, own.high, own.bound) == (-50, -50, -50, bound)
    assert (own.refused is None) is passes
    # Its queries did not move: against the reference's gallery nothing is lost.
    assert (mixed.change, mixed.refused) == (0, None)
    assert found.refusals() == ([] if passes else [f"int8/plain: {own.refused}"])


def reference_of(rows: NDArray[np.float32]) -> Candidate:
    return Candidate("fp32/plain", "fp32", Written(rows))


@pytest.mark.parametrize(("factor", "wide"), [(0.99, True), (1.01, False)])
def test_an_interval_is_too_wide_just_below_its_width_and_not_above(images: Path, factor: float, wide: bool):
    def own(points: float) -> Row:
        bounds = {**DEFAULT_BOUNDS, "int8": Bounds(points=points, cosine=0.9)}
        return measure(
            reference(), [candidate(embeddings(0.02))], queries(images), entries(images), bounds=bounds
        ).rows[1]

    row = own(50)
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.high
    assert ("too few queries prove nothing" in (own(factor * (row.high - row.low)).refused or "")) is wide


def test_few_identities_are_refused_even_where_nothing_changes(images: Path):
    few = [crop for crop in queries(images) if int(crop.pid or 0) < FEWEST_IDENTITIES - 1]
    found = measure(reference(), [candidate(embeddings(0))], few, entries(images))
    assert found.identities == FEWEST_IDENTITIES - 1
    assert [row.change for row in found.rows[1:]] == [0, 0]
    assert all("identities" in (row.refused or "") for row in found.rows[1:])


def test_without_labels_rankings_alone_are_compared_and_it_is_said(images: Path):
    asked, held = queries(images, labelled=False), entries(images, labelled=False)
    found = measure(reference(), [candidate(embeddings(0.3)), candidate(embeddings(3), "int8/lost")], asked, held)
    known = measure(reference(), [candidate(embeddings(0.3))], queries(images), entries(images))
    row = found.rows[1]
    for name in ("rank1", "mAP", "mINP", "change", "low", "high", "bound"):
        assert getattr(row, name) is None
    assert (row.top1, row.top10, row.cosine_min) == (
        known.rows[1].top1,
        known.rows[1].top10,
        known.rows[1].cosine_min,
    )
    assert (found.labelled, found.identities, found.queries) == (False, 0, len(asked))
    assert row.refused is None
    assert "cosine" in (found.rows[3].refused or "")
    assert any("rankings alone were compared" in line for line in table_lines(found))
    assert found.check("int8/plain").change is None


def test_an_image_that_cannot_be_read_is_left_out_and_named(images: Path, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = Crop(tmp_path / "broken.png", "3", "2")
    whole = measure(reference(), [candidate(embeddings(0.3))], queries(images), entries(images))
    found = measure(reference(), [candidate(embeddings(0.3))], queries(images), [*entries(images), broken])
    assert found.left_out == ("broken.png",)
    assert msgspec.structs.replace(found, left_out=()) == whole
    assert any("1 images could not be read" in line and "broken.png" in line for line in table_lines(found))


def test_an_image_that_the_candidate_alone_cannot_embed_is_an_error(images: Path):
    rows = embeddings(0)
    rows[[7, 60]] = np.nan
    with pytest.raises(EvaluationError, match=r"int8/plain gives no embedding for 2 of .* fp32/plain .*7\.png.* NaN"):
        measure(reference(), [candidate(rows)], queries(images), entries(images))
    rows[:] = np.nan
    with pytest.raises(EvaluationError, match="int8/plain: none of 48 query images .* NaN"):
        measure(reference(), [candidate(rows)], queries(images), entries(images))


def test_a_candidate_of_another_dim_is_an_error_that_names_both(images: Path):
    with pytest.raises(EvaluationError, match=r"int8/plain gives 11 dimensions, fp32/plain 12"):
        measure(
            reference(), [candidate(unit_rows(np.random.default_rng(0), 250, 11))], queries(images), entries(images)
        )


def test_queries_that_cannot_match_are_an_error_that_says_why(images: Path):
    strangers = crops(images, range(2 * IDENTITIES, 6 * IDENTITIES), camid="1")
    with pytest.raises(EvaluationError, match="none of 48 queries has a right entry .* own camera"):
        measure(reference(), [], queries(images), strangers)


def test_names_and_samples_and_bounds_that_make_no_sense_are_refused(images: Path):
    with pytest.raises(EvaluationError, match="a name of their own"):
        measure(reference(), [candidate(embeddings(0), "fp32/plain")], queries(images), entries(images))
    with pytest.raises(EvaluationError, match="at least 1 sample"):
        measure(reference(), [], queries(images), entries(images), samples=0)
    for points, cosine in ((0, 0.9), (-1, 0.9), (101, 0.9), (0.5, 1.0), (0.5, -2), (float("nan"), 0.9)):
        with pytest.raises(EvaluationError):
            Bounds(points=points, cosine=cosine)


def test_what_a_contract_keeps_is_the_engines_own_row(images: Path):
    found = measure(reference(), [candidate(embeddings(0.3))], queries(images), entries(images))
    check, row = found.check("int8/plain"), found.rows[1]
    assert (check.engine, check.data, check.queries) == ("int8/plain", found.data, found.queries)
    assert (check.cosine, check.change, check.low, check.high, check.bound) == (
        row.cosine_min, row.change, row.low, row.high, 0.5,
    )  # fmt: skip
    assert found.data == digest_labels({"query": labels_of(queries(images)), "gallery": labels_of(entries(images))})
    with pytest.raises(EvaluationError, match="int8/other was not measured, only that of fp32/plain, int8/plain"):
        found.check("int8/other")


def test_progress_goes_through_all_models_to_the_end(images: Path):
    seen: list[tuple[int, int]] = []
    measure(
        reference(), [candidate(embeddings(0))], queries(images), entries(images),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == sorted(seen)
    assert seen[-1] == (12 * IDENTITIES, 12 * IDENTITIES)


def test_a_record_reads_back_and_is_read_strictly(images: Path):
    found = measure(reference(), [candidate(embeddings(0.3))], queries(images), entries(images), samples=100)
    data = encode_record((found,))
    assert data is not None
    assert decode_record(data) == (found,)
    assert encode_record(decode_record(data)) == data
    assert str(images).encode() not in data
    (raw,) = msgspec.json.decode(data)
    for broken in ({**raw, "more": 1}, {**raw, "format": 2}, {**raw, "rows": [{**raw["rows"][0], "more": 1}]}):
        with pytest.raises(ArtifactError, match="parity.json does not read"):
            decode_record(msgspec.json.encode([broken]))
    with pytest.raises(ArtifactError, match="parity.json does not read"):
        decode_record(data[:-10])


def test_the_table_shows_each_row_and_why_it_is_refused():
    figures = {"rank1": 0.9, "rank5": 0.95, "rank10": 1.0, "mAP": 0.8, "mINP": 0.5}
    rows = (
        Row(engine="fp32/a", precision="fp32", cosine_min=1, cosine_mean=1, top1=1, top10=1, **figures),
        Row(
            engine="int8/b", precision="int8", mixed=True, cosine_min=0.97, cosine_mean=0.99, top1=0.75, top10=0.5,
            change=-1.25, low=-1.5, high=-1.0, bound=0.5, floor=0.9, refused="too much is lost", **figures,
        ),
    )  # fmt: skip
    parity = Parity(
        reference="fp32/a", data="0" * 64, queries=40, gallery=80, identities=20, seed=7, samples=300, rows=rows
    )
    head, first, second, *rest = table_lines(parity)
    assert head.split("  ")[0] == "engine"
    assert first.split() == [
        "fp32/a", "its", "own", "1.000000", "1.000000", "0.9000", "0.9500", "1.0000", "0.8000", "0.5000", "1.0000",
        "1.0000", "-", "-", "reference",
    ]  # fmt: skip
    assert second.split()[-8:] == ["0.5000", "0.7500", "0.5000", "-1.250", "-1.500", "to", "-1.000", "REFUSED"]
    assert "Refused: int8/b on the gallery of fp32/a: too much is lost." in rest
    assert any("40 queries of 20 identities in a gallery of 80" in line and "seed 7" in line for line in rest)


@pytest.mark.parametrize(("identities", "fallen", "said"), [(24, 6, "-20.83 to -4.17"), (240, 60, "-15.21 to -9.79")])
def test_the_interval_of_the_guide_is_that_of_the_binomial_distribution(identities: int, fallen: int, said: str):
    changes = np.where(np.arange(identities) < fallen, -50.0, 0.0)
    low, high = bootstrap(changes, np.arange(identities), samples=10_000, seed=0)
    assert f"{low:.2f} to {high:.2f}" == said
    assert said in (Path(__file__).parents[1] / "docs" / "parity.md").read_text(encoding="utf-8")


def test_each_precision_is_held_to_bounds_of_its_own(images: Path):
    bounds = {**DEFAULT_BOUNDS, "int8": Bounds(points=60, cosine=0.1), "fp16": Bounds(points=60, cosine=0.99)}
    rows = embeddings(0.3)
    found = measure(
        reference(),
        [candidate(rows), Candidate("fp16/plain", "fp16", Written(rows))],
        queries(images),
        entries(images),
        bounds=bounds,
    )
    assert [row.refused is None for row in found.rows] == [True, True, True, False, False]
    assert [row.floor for row in found.rows] == [None, 0.1, 0.1, 0.99, 0.99]
    assert all("cosine" in reason and "0.99" in reason for reason in found.refusals())
