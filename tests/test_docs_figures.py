"""Every figure of docs/evaluation.md that was measured and that needs no command, computed again."""

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from reidserve.datasets import read_crops
from reidserve.embed import map_ahead, open_embedder, read_image
from reidserve.errors import EvaluationError
from reidserve.evaluate import Evaluation, Labelled, Labels, Rule, evaluate, evaluate_scores, labels_of
from reidserve.evaluate.features import read_features
from reidserve.evaluate.metrics import average_precisions
from reidserve.evaluate.openset import pair_point, search_point
from reidserve.evaluate.protocols import evaluate_expanded, evaluate_reranked
from reidserve.index.rerank import Reranking, rerank

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def measured(choice: str) -> list[list[float]]:
    """What a row of the table says: per column Rank-1 and mAP in percent."""
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {choice} |")]
    return [list(map(float, re.findall(r"\d+\.\d+", cell))) for cell in line.split("|")[2:4]]


def percent(found: Evaluation, *, precisions=None) -> list[float]:
    """Rank-1 and mAP; of other average precisions than by hits where some are given."""
    mean = found.metrics.mAP if precisions is None else float(np.mean(precisions))
    return [100 * found.metrics.rank1, 100 * mean]


def same(found: list[float], stated: list[float]) -> None:
    # Where a machine rounds otherwise, one query's best hit may be another one.
    assert found[0] == pytest.approx(stated[0], abs=0.26)
    assert found[1] == pytest.approx(stated[1], abs=0.06)


def precisions_of_best(found: Evaluation, depth: int, *, over_all: bool) -> list[float]:
    """The average precision within the best, one query at a time."""
    values = []
    for query in range(len(found.query)):
        every = found.outcomes.ranks[found.outcomes.of(query)]
        ranks = every[every <= depth]
        total = float(np.sum(np.arange(1, len(ranks) + 1) / ranks))
        values.append(total / max(1, len(every if over_all else ranks)))
    return values


def reversed_gallery(images: Labelled) -> Labelled:
    return images.take(np.arange(len(images))[::-1].copy())


def rounded(query: Labelled, gallery: Labelled) -> Evaluation:
    scores = np.round(query.embeddings @ gallery.embeddings.T * 127) / 127
    return evaluate_scores([(slice(0, len(query)), scores.astype(np.float32))], query.labels, gallery.labels)


def check_what_both_columns_say(query: Labelled, gallery: Labelled, column: int) -> None:
    plain, back = evaluate(query, gallery), evaluate(query, reversed_gallery(gallery))
    first, last = rounded(query, gallery), rounded(query, reversed_gallery(gallery))
    cut = {over_all: precisions_of_best(plain, 100, over_all=over_all) for over_all in (True, False)}
    by_choice = {
        "as here": percent(plain),
        "AP by trapezoid": percent(plain, precisions=average_precisions(plain.outcomes, "trapezoid")),
        "AP of the best 100 hits, over all right images": percent(plain, precisions=cut[True]),
        "AP of the best 100 hits, over the right ones found": percent(plain, precisions=cut[False]),
        "scores rounded to 1/127, as int8 gives them": percent(first),
        "the same, later image first where equal": percent(last),
        "the same, AP by step": percent(first, precisions=average_precisions(first.outcomes, "step")),
        "later image first, scores as they are": percent(back),
    }
    by_choice |= {
        "re-ranked": percent(evaluate_reranked(query, gallery, how=Reranking())),
        "expanded by 3, alpha 3": percent(evaluate_expanded(query, gallery, count=3, alpha=3)),
    }
    for choice, found in by_choice.items():
        same(found, measured(choice)[column])
    # What the prose says of them holds wherever it is computed.
    assert percent(back) == percent(plain)
    assert last.metrics.mAP_step == pytest.approx(first.metrics.mAP_step, abs=1e-12)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labelled, Labelled]:
    """The .npz that the page makes, made as it says."""
    lines = TEXT.split("    import runpy\n")[1].split("\n## ")[0].splitlines()
    folder = tmp_path_factory.mktemp("drawn")
    code = "\n".join(["import runpy", *(line.removeprefix("    ") for line in lines)])
    code = code.replace("benchmarks/evaluate.py", str(ROOT / "benchmarks" / "evaluate.py"))
    exec(code.replace("drawn.npz", str(folder / "drawn.npz")), {"__name__": "page"})
    return read_features(folder / "drawn.npz")


def test_drawn_figures_are_those_stated(drawn):
    query, gallery = drawn
    assert (query.embeddings.shape, gallery.embeddings.shape) == ((400, 256), (3000, 256))
    assert [gallery.labels.pids.count(pid) for pid in ("0000", "-1")] == [250, 250]
    check_what_both_columns_say(query, gallery, 1)
    for choice, rule in {
        "junk counts as wrong": Rule(junk=True),
        "distractors dropped": Rule(distractors=False),
        "own camera kept": Rule(cameras="any"),
        "own camera dropped wholly": Rule(cameras="cross"),
    }.items():
        same(percent(evaluate(query, gallery, rule=rule)), measured(choice)[1])


@pytest.fixture(scope="module")
def photographs(shared: Path, osnet: Path) -> tuple[np.ndarray, Labels]:
    """Features of the photographs before they are normalised, and their labels."""
    crops = read_crops(shared / "data" / "vehicles" / "images", pattern=r"(?P<pid>[a-z]+_\d+)_cam(?P<camid>\d)")
    prepare = open_embedder(osnet).prepare
    mean, deviation = (np.array(three, np.float32) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    session = onnxruntime.InferenceSession(shared / "models" / "osnet_x0_25_msmt17.onnx")
    with closing(map_ahead(lambda crop: prepare(read_image(crop.path)), crops, ahead=64)) as images:
        batches = np.array_split(np.stack(list(images)), 36)
    features = []
    for batch in batches:
        pixels = ((batch / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)
        features.append(session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(pixels)})[0])
    return np.concatenate(features), labels_of(crops)


@pytest.mark.slow  # 10 to 20 seconds of embedding
def test_photographs_figures_are_those_stated(photographs):
    raw, known = photographs
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    images = Labelled(raw / lengths, known)
    check_what_both_columns_say(images, images, 0)
    squares = lengths**2
    for choice, scores in {
        "not normalised, Euclidean": 2 * raw @ raw.T - squares - squares.T,
        "not normalised, dot product": raw @ raw.T,
    }.items():
        same(percent(evaluate_scores([(slice(0, len(raw)), scores)], known, known)), measured(choice)[0])
    train = images.take(np.flatnonzero(["/train/" in str(source) for source in known.sources]))
    for choice, rule in {
        "gallery without the test part: 120 queries have no right image": Rule(),
        "the same, means over all queries": Rule(queries="all"),
    }.items():
        found = evaluate(images, train, rule=rule)
        assert found.metrics.unmatchable == 120
        same(percent(found), measured(choice)[0])


@pytest.mark.slow  # 10 to 20 seconds of embedding
def test_the_photographs_thresholds_are_those_stated(photographs):
    raw, known = photographs
    images = Labelled(raw / np.linalg.norm(raw, axis=1, keepdims=True), known)
    found = evaluate(images, images, impostors=True)
    searches, pairs = search_point(found, 0.05), pair_point(found, 0.001)
    assert (searches.threshold, searches.true) == (pytest.approx(0.8949, abs=1e-4), pytest.approx(0.077, abs=1e-3))
    assert (pairs.threshold, pairs.true) == (pytest.approx(0.8445, abs=1e-4), pytest.approx(0.365, abs=1e-3))
    assert search_point(found, 0.001).false <= 0.001
    with pytest.raises(EvaluationError, match="1,134 searches cannot show a false alarm rate of 0.0001"):
        search_point(found, 0.0001)


def test_strong_baselines_re_ranking_differs_as_stated(shared: Path):
    cases = np.load(shared / "data" / "goldens" / "rerank_cases.npz")
    apart = np.abs(rerank(cases["qf"], cases["gf"]) - cases["reranked_strong_baseline"])
    assert apart.max() == pytest.approx(0.0794, abs=5e-5)
