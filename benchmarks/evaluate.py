"""Evaluating and re-ranking against the matrix products they stand on.

    python -P benchmarks/evaluate.py [--quick]

Embeddings are drawn at the sizes of Market-1501 and MSMT17, so that neither is easy: identities differ in few
directions, and poses, cameras and noise move a photograph in the same ones. Beside each time, in the same run and in
turn, the bare products are timed: of evaluating, queries with gallery; of re-ranking, the three that its formula is
given (queries with gallery, queries with queries, gallery with gallery), and, without a bound, those that are
multiplied at all, each pair once. Figures are medians of ratios turn by turn, absolute times only for orientation.
Memory is what a fresh process holds at most beyond what it held before the work, its libraries loaded. Answers must
equal plain ones: of evaluating, every rank of some queries; of re-ranking, the dense distances of a smaller problem.

How far re-ranking a shortlist goes towards re-ranking the whole gallery is a figure without a bound.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from reidserve.evaluate import Labelled, Labels, evaluate
from reidserve.index.rerank import rerank, rerank_in_chunks

EVALUATE_OVER_PRODUCT = 1.15
RERANK_OVER_PRODUCTS = 1.3
WITHIN = 1e-5
"""What sparse and dense distances may differ by."""

CHECKED = 40
"""Queries whose ranks are compared with plain ones."""

SHORTLIST = 100
PANEL_BYTES = 64 * 2**20
DIRECTIONS = 40
"""In so many directions do the embeddings of real networks differ (benchmarks/gallery.py)."""

Floats = NDArray[np.float32]
Figures = dict[str, Any]

_Step = TypeVar("_Step")


@dataclass(frozen=True, slots=True)
class Problem:
    """A dataset's size and what it may cost.

    Attributes:
        queries: images that ask.
        gallery: images that are ranked.
        pids: identities, of which each query's is one.
        camids: cameras.
        distractors: gallery images of nobody.
        dim: dimensions of an embedding.
        evaluate_bytes: what evaluating may hold beyond its embeddings; None where nothing is promised.
        rerank_bytes: what re-ranking may.
    """

    queries: int
    gallery: int
    pids: int
    camids: int
    distractors: int = 0
    dim: int = 2048
    evaluate_bytes: float | None = None
    rerank_bytes: float | None = None


PROBLEMS = {
    "market1501": Problem(3368, 15913, 751, 6, 2798, evaluate_bytes=100e6, rerank_bytes=1e9),
    "msmt17": Problem(11659, 82161, 3060, 15, evaluate_bytes=200e6),
    "quick": Problem(400, 3000, 150, 6, 500, dim=256),
    "dense": Problem(200, 1800, 80, 6, 300),
    "warm": Problem(8, 64, 4, 2, dim=64),
}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="under a minute: 400 x 3000 x 256, no bounds on ratios")
    arguments.add_argument("--memory", nargs=2, metavar=("PROBLEM", "WORK"), help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.memory:
        print(measure_memory(*asked.memory))
        return 0
    name = "quick" if asked.quick else "market1501"
    query, gallery = map(as_filed, draw(PROBLEMS[name]))
    evaluating, ranks_right = measure_evaluating(query, gallery, rounds=3 if asked.quick else 15)
    reranking, distances_right = measure_reranking(query, gallery, rounds=3 if asked.quick else 5)
    works = [(name, "evaluate"), (name, "rerank"), *([] if asked.quick else [("msmt17", "evaluate")])]
    memory = {f"{problem}_{work}": memory_in_child(problem, work) for problem, work in works}
    holds = ranks_right and distances_right and within_bounds(memory)
    if not asked.quick:
        holds = holds and evaluating["evaluate_over_product"] <= EVALUATE_OVER_PRODUCT
        holds = holds and reranking["rerank_over_products"] <= RERANK_OVER_PRODUCTS
    report = {
        "name": "evaluate",
        "holds": holds,
        "quick": asked.quick,
        "problem": name,
        "queries": len(query),
        "gallery": len(gallery),
        "dim": PROBLEMS[name].dim,
        "ranks_right": ranks_right,
        "distances_right": distances_right,
        **evaluating,
        **reranking,
        **measure_shortlists(query, gallery),
        **{f"{work}_extra_MB": round(taken / 1e6, 1) for work, taken in memory.items()},
        "versions": {name: version(name) for name in ("reidserve", "numpy", "numba", "scipy")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def draw(problem: Problem) -> tuple[Labelled, Labelled]:
    """Queries and a gallery: what all photographs share, an identity, a pose, a camera and noise."""
    rng = np.random.default_rng(0)
    dim = problem.dim

    def units(count: int, width: int = dim) -> Floats:
        rows = rng.standard_normal((count, width), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    directions = units(DIRECTIONS)
    identities, cameras = units(problem.pids, DIRECTIONS), 0.5 * units(problem.camids, DIRECTIONS)
    common = 1.2 * units(1)[0]

    def photographs(count: int, distractors: int, part: str) -> Labelled:
        pids, camids = rng.integers(0, problem.pids, count), rng.integers(0, problem.camids, count)
        strangers = np.arange(count) >= count - distractors
        inner = np.where(strangers[:, np.newaxis], units(count, DIRECTIONS), identities[pids])
        inner += cameras[camids] + rng.uniform(0.3, 0.9, (count, 1)).astype(np.float32) * units(count, DIRECTIONS)
        rows = inner @ directions
        rows += common
        for some in np.array_split(rows, -(-count // 4096)):
            some += 0.5 * units(len(some))
            some /= np.linalg.norm(some, axis=1, keepdims=True)
        names = ["0000" if stranger else f"p{pid}" for pid, stranger in zip(pids, strangers, strict=True)]
        return Labelled(rows, Labels(names, [f"c{camid}" for camid in camids], [f"{part}/{n}" for n in range(count)]))

    return photographs(problem.queries, 0, "query"), photographs(problem.gallery, problem.distractors, "gallery")


def as_filed(images: Labelled) -> Labelled:
    """The images in the order of a dataset's files: by identity."""
    return images.take(np.argsort(np.array(images.labels.pids, str), kind="stable"))


def measure_evaluating(query: Labelled, gallery: Labelled, rounds: int) -> tuple[Figures, bool]:
    """Time over that of the bare product in chunks, and whether some queries' ranks are the plain ones."""
    seconds = Turns(
        "evaluating",
        {
            "product": lambda: multiply(query.embeddings, gallery.embeddings),
            "evaluate": lambda: evaluate(query, gallery),
        },
        rounds,
    )
    found = evaluate(query, gallery)
    some = np.linspace(0, len(query) - 1, CHECKED).astype(int).tolist()
    right = all(
        np.array_equal(found.outcomes.ranks[found.outcomes.of(place)], plain_ranks(query, gallery, place))
        for place in some
    )
    return {
        "rank1": round(found.metrics.rank1, 4),
        "mAP": round(found.metrics.mAP, 4),
        "product_seconds": round(seconds.seconds("product"), 2),
        "evaluate_over_product": round(seconds.ratio("evaluate", "product"), 3),
        "rounds": rounds,
    }, right


def plain_ranks(query: Labelled, gallery: Labelled, place: int) -> NDArray[np.int64]:
    """The ranks of one query's right entries, by every pair's score and the rule as it is written."""
    scores = np.vecdot(gallery.embeddings, query.embeddings[place])
    order = np.argsort(-scores, kind="stable").tolist()
    pid, camid = query.labels.pids[place], query.labels.camids[place]
    counted = [row for row in order if (gallery.labels.pids[row], gallery.labels.camids[row]) != (pid, camid)]
    return np.flatnonzero([gallery.labels.pids[row] == pid for row in counted]) + 1


def measure_reranking(query: Labelled, gallery: Labelled, rounds: int) -> tuple[Figures, bool]:
    """Time over that of products, and whether a smaller problem's distances are the dense ones."""
    few, some = (labelled.embeddings for labelled in draw(PROBLEMS["dense"]))
    sparse = np.concatenate([distances for _, distances in rerank_in_chunks(few, some)])
    furthest = float(np.abs(sparse - rerank(few, some)).max())
    seconds = Turns(
        "re-ranking",
        {
            "products": lambda: multiply_what_is_given(query.embeddings, gallery.embeddings),
            "least": lambda: multiply_for_reranking(query.embeddings, gallery.embeddings),
            "rerank": lambda: drain(rerank_in_chunks(query.embeddings, gallery.embeddings)),
        },
        rounds,
    )
    return {
        "rerank_products_seconds": round(seconds.seconds("products"), 2),
        "rerank_over_products": round(seconds.ratio("rerank", "products"), 3),
        "rerank_over_least_products": round(seconds.ratio("rerank", "least"), 3),
        "sparse_from_dense": furthest,
    }, furthest <= WITHIN


def multiply(left: Floats, right: Floats) -> None:
    """All products of two sets, a panel at a time."""
    step = max(1, PANEL_BYTES // (4 * len(right)))
    buffer = np.empty((step, len(right)), np.float32)
    for start in range(0, len(left), step):
        some = left[start : start + step]
        np.matmul(some, right.T, out=buffer[: len(some)])


def multiply_what_is_given(query: Floats, gallery: Floats) -> None:
    """The products whose distances k-reciprocal encoding takes (Zhong et al., 2017: q_g, q_q, g_g)."""
    for left, right in ((query, gallery), (query, query), (gallery, gallery)):
        multiply(left, right)


def multiply_for_reranking(query: Floats, gallery: Floats) -> None:
    """The products that re-ranking cannot do without: each pair of images once, and queries with the gallery again."""
    vectors = np.concatenate([query, gallery])
    step = max(1, PANEL_BYTES // (4 * len(vectors)))
    buffer = np.empty(step * len(vectors), np.float32)
    for start in range(0, len(vectors), step):
        some, rest = vectors[start : start + step], vectors[start:]
        np.matmul(some, rest.T, out=buffer[: len(some) * len(rest)].reshape(len(some), -1))
    multiply(query, gallery)


def drain(chunks: Iterator[object]) -> None:
    for _ in chunks:
        pass


def measure_shortlists(query: Labelled, gallery: Labelled) -> Figures:
    """Rank-1 and mAP within each query's SHORTLIST best, in plain order, re-ranked alone, and in full re-ranking."""
    figures = {name: ([], []) for name in ("plain", "shortlist", "full")}  # type: ignore[var-annotated]
    first, shared = [], []
    pids, camids = np.array(gallery.labels.pids), np.array(gallery.labels.camids)
    for part, distances in shown("shortlists", rerank_in_chunks(query.embeddings, gallery.embeddings)):
        scores = query.embeddings[part] @ gallery.embeddings.T
        for place, row, full in zip(range(part.start, part.stop), scores, distances, strict=True):
            best = np.argsort(-row, kind="stable")[:SHORTLIST]
            alone = rerank(query.embeddings[place : place + 1], gallery.embeddings[best])[0]
            counts = (pids[best] != query.labels.pids[place]) | (camids[best] != query.labels.camids[place])
            orders = {
                "plain": np.arange(len(best)),
                "shortlist": np.argsort(alone, kind="stable"),
                "full": np.argsort(full[best], kind="stable"),
            }
            for name, order in orders.items():
                right = pids[best[order[counts[order]]]] == query.labels.pids[place]
                ranks = np.flatnonzero(right) + 1
                figures[name][0].append(bool(right[:1].any()))
                figures[name][1].append(np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0.0)
            everywhere = np.argsort(full, kind="stable")[:10]
            first.append(best[orders["shortlist"][0]] == everywhere[0])
            shared.append(len(set(best[orders["shortlist"][:10]]) & set(everywhere)) / 10)
    return {
        "shortlist": SHORTLIST,
        **{f"{name}_rank1": round(float(np.mean(hits)), 4) for name, (hits, _) in figures.items()},
        **{f"{name}_mAP_of_shortlist": round(float(np.mean(means)), 4) for name, (_, means) in figures.items()},
        "shortlist_top_1_as_full": round(float(np.mean(first)), 4),
        "shortlist_top_10_of_full": round(float(np.mean(shared)), 4),
    }


def memory_in_child(problem: str, work: str) -> int:
    child = [sys.executable, "-P", __file__, "--memory", problem, work]
    return int(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)


def measure_memory(problem: str, work: str) -> int:
    """Bytes that a work holds at most beyond what the process held before it."""
    works: Mapping[str, Callable[[Labelled, Labelled], object]] = {
        "evaluate": evaluate,
        "rerank": lambda query, gallery: drain(rerank_in_chunks(query.embeddings, gallery.embeddings)),
    }
    works[work](*draw(PROBLEMS["warm"]))
    query, gallery = map(as_filed, draw(PROBLEMS[problem]))
    # What drawing has freed and the C library keeps would serve the work unseen.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    with sampling() as peak:
        works[work](query, gallery)
    return peak[0] - before


def within_bounds(memory: Figures) -> bool:
    bounds = {
        f"{name}_{work}": bound
        for name, problem in PROBLEMS.items()
        for work, bound in (("evaluate", problem.evaluate_bytes), ("rerank", problem.rerank_bytes))
        if bound is not None
    }
    return all(taken <= bounds.get(work, np.inf) for work, taken in memory.items())


@contextmanager
def sampling() -> Iterator[list[int]]:
    """The most resident bytes seen while the block runs, looked at each few milliseconds."""
    peak, stop = [resident_bytes()], threading.Event()

    def sample() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], resident_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        stop.set()
        sampler.join()


def shown(what: str, steps: Iterable[_Step]) -> Iterable[_Step]:
    """The same steps, counted on a terminal as they are done."""
    console = Console(stderr=True)
    return track(steps, what, console=console, transient=True, disable=not console.is_terminal)


class Turns:
    """Seconds of several works, taken in turn, so that a slow moment of the machine hits all; the first turn warms."""

    def __init__(self, what: str, works: Mapping[str, Callable[[], object]], rounds: int) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in works}
        for turn in shown(what, range(rounds + 1)):
            for name, work in works.items():
                start = time.perf_counter()
                work()
                if turn:
                    self._seconds[name].append(time.perf_counter() - start)

    def seconds(self, name: str) -> float:
        """The median."""
        return median(self._seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of one over the other, turn by turn."""
        return median(a / b for a, b in zip(self._seconds[name], self._seconds[other], strict=True))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
