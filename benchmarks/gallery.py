"""The gallery engine against the bare arithmetic it stands on.

    python -P benchmarks/gallery.py [--quick] [--entries 100000] [--dim 2048]

Embeddings are drawn in clusters, one per identity, with the cosines within and between identities that a trained
network gives real photographs (REAL, measured on 1,134 vehicle photographs with OSNet x0.25). They are written to a
gallery on disk, durably, and searched there. Beside each figure, in the same run and in turn, the bare work is
timed: matrix products over the same blocks, decoding and the engine without a gallery. Exact answers must equal
brute force bit by bit; those of the quantised index may miss entries, at the recall that is printed, and what they
find must be scored and ordered alike. Figures are medians of ratios turn by turn, absolute times only for orientation.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from reidserve.datasets import read_crops
from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.embed import Embedder, Preprocessing, map_ahead, open_embedder, read_image
from reidserve.export.convert import Feeding, adopt
from reidserve.index import (
    Entry,
    FolderGallery,
    FolderSnapshot,
    Origin,
    Ranking,
    Record,
    build_gallery,
    open_writer,
    parse_filter,
)
from reidserve.index.gallery import open_gallery
from reidserve.index.search.ranking import rank_plainly
from reidserve.index.storage.store import create_store

TOP_K = 10
BATCH = 512
GALLERY_PART = "bounding_box_test"
IMAGES_EACH = 8
"""Photographs of one identity."""

REAL = {"within": (0.814, 0.070), "between": (0.565, 0.091)}
"""Mean and deviation of the cosine of two photographs of one identity, and of two identities."""

REAL_RANK = 40
"""Effective rank of the real embeddings once centred: identities differ in so many directions."""

BOUNDED = (100_000, 2048)
"""The bounds below are promised of so many entries and dimensions."""

ONE_QUERY_OVER_PRODUCT = 0.25
BATCH_PRODUCT_OVER_EXACT = 0.9
RECALL = 0.999
BUILD_OVER_BARE = 0.95
REST_SECONDS = 0.2
"""Between two works: after a bare product the BLAS's threads spin for a while, on the cores of whatever comes next."""

# A third of a ResNet-18's products, with random weights: what is timed is the way, and a small network shows it most.
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 3, 256, 128] pixels) => (float[N, 2048] feature)
{
    c1 = Conv <kernel_shape = [7, 7], strides = [2, 2], pads = [3, 3, 3, 3]> (pixels, w1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r2, w3)
    r3 = Relu (c3)
    c4 = Conv <kernel_shape = [1, 1]> (r3, w4)
    pooled = GlobalMaxPool (c4)
    feature = Flatten (pooled)
}
"""
WEIGHTS = {"w1": (64, 3, 7, 7), "w2": (192, 64, 3, 3), "w3": (384, 192, 3, 3), "w4": (2048, 384, 1, 1)}

Floats = NDArray[np.float32]
Figures = dict[str, Any]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="about a minute: 20,000 x 256, no bounds on ratios")
    arguments.add_argument("--entries", type=int, default=100_000)
    arguments.add_argument("--dim", type=int, default=2048)
    asked = arguments.parse_args()
    entries, dim = (20_000, 256) if asked.quick else (asked.entries, asked.dim)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        people = People(dim, seed=0)
        write = measure_writing(work / "bench.gallery", people, entries)
        before = resident_bytes()
        start = time.perf_counter()
        gallery = open_gallery(work / "bench.gallery", kind="rabitq")
        indexed_seconds = time.perf_counter() - start
        figures: Figures = {
            **people.cosines(),
            **write,
            "bytes_of_memory_an_entry": round((resident_bytes() - before) / entries),
            "first_open_seconds_a_GB": round(indexed_seconds / (entries * dim * 4 / 1e9), 2),
            **measure_opening(gallery, entries * dim * 4),
        }
        flat = open_gallery(work / "bench.gallery", kind="flat").snapshot
        searching, right = measure_searching(flat, gallery.snapshot, people, rounds=3 if asked.quick else 7)
        gallery.close()
        figures |= searching
        figures |= measure_building(work, images=64 if asked.quick else 384)
    bounded = (entries, dim) == BOUNDED
    holds = right and (
        not bounded
        or (
            figures["one_query_over_product"] <= ONE_QUERY_OVER_PRODUCT
            and figures["recall_at_10"] >= RECALL
            and figures["batch_product_over_exact"] >= BATCH_PRODUCT_OVER_EXACT
            and figures["batch_indexed_over_product"] < 1
            and figures["build_over_bare"] >= BUILD_OVER_BARE
        )
    )
    report = {
        "name": "gallery",
        "holds": holds,
        "quick": asked.quick,
        "entries": entries,
        "dim": dim,
        "answers_right": right,
        **figures,
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "faiss-cpu")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


class People:
    """Embeddings in clusters: what all photographs share, what an identity has, and what one photograph adds."""

    def __init__(self, dim: int, *, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._dim = dim
        self._common = self._unit(1)[0]
        self._directions = self._unit(REAL_RANK)
        self._between, self._within = REAL["between"], REAL["within"]

    def draw(self, count: int) -> Floats:
        """Photographs (count, dim), IMAGES_EACH of one identity after the other."""
        identities = self.identities(-(-count // IMAGES_EACH))
        return self.photographs(np.repeat(identities, IMAGES_EACH, axis=0)[:count])

    def identities(self, count: int) -> Floats:
        """What identities (count, dim) have in common, and what is theirs; the shares vary as in REAL."""
        mean, deviation = self._between
        share = self._share(count, mean / self._within[0], np.sqrt(2) * deviation)
        own = self._normed(self._rng.standard_normal((count, REAL_RANK), dtype=np.float32) @ self._directions)
        return self._normed(np.sqrt(share) * self._common + np.sqrt(1 - share) * own)

    def photographs(self, identities: Floats) -> Floats:
        """One photograph of each identity (n, dim)."""
        mean, deviation = self._within
        share = self._share(len(identities), mean, np.sqrt(2) * deviation)
        return self._normed(np.sqrt(share) * identities + np.sqrt(1 - share) * self._unit(len(identities)))

    def _share(self, count: int, mean: float, deviation: float) -> Floats:
        share: Floats = np.clip(self._rng.normal(mean, deviation, (count, 1)), 0.05, 0.98).astype(np.float32)
        return share

    def cosines(self) -> Figures:
        """Mean and deviation within and between identities, drawn and real."""
        photographs = self.draw(200 * IMAGES_EACH)
        cosines = photographs @ photographs.T
        identity = np.arange(len(photographs)) // IMAGES_EACH
        same = identity[:, np.newaxis] == identity
        np.fill_diagonal(same, False)
        within, between = cosines[same], cosines[identity[:, np.newaxis] != identity]
        return {
            "cosine_within": [round(float(within.mean()), 3), round(float(within.std()), 3)],
            "cosine_between": [round(float(between.mean()), 3), round(float(between.std()), 3)],
            "real_cosine_within": list(REAL["within"]),
            "real_cosine_between": list(REAL["between"]),
        }

    def _unit(self, count: int) -> Floats:
        return self._normed(self._rng.standard_normal((count, self._dim), dtype=np.float32))

    @staticmethod
    def _normed(rows: NDArray[np.floating]) -> Floats:
        normed: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return normed


def measure_writing(folder: Path, people: People, entries: int) -> Figures:
    """Write the gallery; upserts a second, durable, in transactions of 256 and of one."""
    create_store(folder, Origin("0" * 64, "fp32/none", people.draw(1).shape[1])).close()
    times = []
    with open_writer(folder) as store:
        for start in range(0, entries, 4096):
            records = records_of(people.draw(min(4096, entries - start)), start)
            for first in range(0, len(records), 256):
                begun = time.perf_counter()
                store.upsert(records[first : first + 256])
                times.append((time.perf_counter() - begun) / len(records[first : first + 256]))
        singles = []
        for record in records_of(people.draw(64), 0):
            begun = time.perf_counter()
            store.upsert([record])
            singles.append(time.perf_counter() - begun)
    return {
        "upserts_a_second_in_256s": round(1 / median(times)),
        "upserts_a_second_alone": round(1 / median(singles)),
        "bytes_of_disk_an_entry": round((folder / "gallery.db").stat().st_size / entries),
    }


def records_of(vectors: Floats, start: int) -> list[Record]:
    return [
        Record(
            Entry(
                f"{(start + place) // IMAGES_EACH:06}_c{place % IMAGES_EACH}_{start + place:08}.jpg",
                pid=f"{(start + place) // IMAGES_EACH:06}",
                camid=f"c{place % IMAGES_EACH}",
                timestamp=1_700_000_000_000_000 + (start + place) * 1_000_000,
                source=f"/data/crops/{(start + place) // IMAGES_EACH:06}_c{place % IMAGES_EACH}_{start + place:08}.jpg",
            ),
            sha256(vector.tobytes()).digest(),
            vector,
        )
        for place, vector in enumerate(vectors)
    ]


def measure_opening(gallery: FolderGallery, size: int) -> Figures:
    folder = gallery.folder
    gallery.close()

    def opened(kind: str) -> float:
        start = time.perf_counter()
        open_gallery(folder, kind=kind).close()  # type: ignore[arg-type]
        return time.perf_counter() - start

    flat = median([opened("flat") for _ in range(3)])
    cached = median([opened("rabitq") for _ in range(3)])
    return {
        "open_seconds_a_GB": round(flat / (size / 1e9), 2),
        "open_with_cached_index_over_flat": round(cached / flat, 2),
    }


def measure_searching(
    flat: FolderSnapshot, indexed: FolderSnapshot, people: People, *, rounds: int
) -> tuple[Figures, bool]:
    block_vectors = [block.vectors for block in flat.blocks]
    known = np.concatenate([vectors[: min(len(vectors), 64)] for vectors in block_vectors])
    queries = people.photographs(np.resize(known, (BATCH, known.shape[1])))
    one = queries[:1]

    def product(some: Floats) -> None:
        for vectors in block_vectors:
            np.matmul(vectors, some[0]) if len(some) == 1 else np.matmul(some, vectors.T)

    exact, found = flat.search(queries, top_k=TOP_K), indexed.search(queries, top_k=TOP_K)
    right = equals_brute_force(flat, queries[:8], exact) and scored_alike(exact, found)
    each: dict[str, Callable[[], object]] = {
        "product": lambda: product(one),
        "exact": lambda: flat.search(one, top_k=TOP_K),
        "indexed": lambda: indexed.search(one, top_k=TOP_K),
    }
    filters = {
        "broad": "camid != c3",
        "half": "camid in (c0, c1, c2, c3)",
        "narrow": "camid == c1 and timestamp < 1700001000000000",
    }
    for name, text in filters.items():
        where = parse_filter(text)
        right = right and filtered_right(flat, queries[:2], where)
        each |= {
            f"exact_{name}": lambda where=where: flat.search(one, top_k=TOP_K, where=where),  # type: ignore[misc]
            f"indexed_{name}": lambda where=where: indexed.search(one, top_k=TOP_K, where=where),  # type: ignore[misc]
        }
    alone = Turns(each, rounds * 3)
    batch = Turns(
        {
            "product": lambda: product(queries),
            "exact": lambda: flat.search(queries, top_k=TOP_K),
            "indexed": lambda: indexed.search(queries, top_k=TOP_K),
        },
        rounds * 2,
    )
    return {
        "kind": indexed.kind,
        "recall_at_10": round(recall(exact, found), 5),
        "one_query_product_ms": round(1000 * alone.seconds("product"), 2),
        "one_exact_query_over_product": round(alone.ratio("exact", "product"), 3),
        "one_query_over_product": round(alone.ratio("indexed", "product"), 3),
        **{
            f"one_{kind}_query_{name}_filter_over_none": round(alone.ratio(f"{kind}_{name}", kind), 2)
            for kind in ("exact", "indexed")
            for name in filters
        },
        "batch_product_ms_a_query": round(1000 * batch.seconds("product") / BATCH, 3),
        "batch_product_over_exact": round(batch.ratio("product", "exact"), 3),
        "batch_indexed_over_product": round(batch.ratio("indexed", "product"), 3),
    }, right


def equals_brute_force(snapshot: FolderSnapshot, queries: Floats, found: Ranking) -> bool:
    vectors = np.concatenate([block.vectors for block in snapshot.blocks])
    rows = np.concatenate([block.rows for block in snapshot.blocks])
    accepted = np.concatenate([block.live for block in snapshot.blocks])
    plain = rank_plainly(queries, vectors, rows, top_k=found.rows.shape[1], accepted=accepted)
    count = len(queries)
    return bool((plain.rows == found.rows[:count]).all() and (plain.scores == found.scores[:count]).all())


def filtered_right(snapshot: FolderSnapshot, queries: Floats, where: object) -> bool:
    found = snapshot.search(queries, top_k=TOP_K, where=where)  # type: ignore[arg-type]
    pairs = [
        (vector, row)
        for block in snapshot.blocks
        for vector, row, entry, live in zip(block.vectors, block.rows, block.entries, block.live, strict=False)
        if live and where.accepts(entry)  # type: ignore[attr-defined]
    ]
    vectors, rows = np.stack([vector for vector, _ in pairs]), np.array([row for _, row in pairs])
    plain = rank_plainly(queries, vectors, rows, top_k=found.rows.shape[1])
    return bool((plain.rows == found.rows).all() and (plain.scores == found.scores).all())


def scored_alike(exact: Ranking, found: Ranking) -> bool:
    """What both found has one score, and nothing that was found stands out of order."""
    ordered = (np.diff(found.scores, axis=1) <= 0).all()
    scores = [dict(zip(rows, values, strict=True)) for rows, values in zip(exact.rows, exact.scores, strict=True)]
    alike = all(
        known.get(row, value) == value
        for known, rows, values in zip(scores, found.rows, found.scores, strict=True)
        for row, value in zip(rows, values, strict=True)
    )
    return bool(ordered and alike)


def recall(exact: Ranking, found: Ranking) -> float:
    shared = [len(set(a) & set(b)) for a, b in zip(exact.rows.tolist(), found.rows.tolist(), strict=True)]
    return sum(shared) / exact.rows.size


def measure_building(work: Path, images: int) -> Figures:
    """Images a second of a build over those of decoding and the engine alone, overlapped alike."""
    embedder = make_model(work)
    crops = draw_crops(work / "crops", images)

    def bare() -> None:
        batch = []
        for image in map_ahead(lambda path: embedder.prepare(read_image(path)), crops, ahead=256):
            batch.append(image)
            if len(batch) == 256:
                embedder.embed(np.stack(batch))
                batch.clear()
        if batch:
            embedder.embed(np.stack(batch))

    built = iter(range(1000))

    def build() -> None:
        found = read_crops(work / "crops" / GALLERY_PART)
        report = build_gallery(found, work / "crops", work / f"built{next(built)}.gallery", embedder)
        assert report.embedded == len(crops), report

    seconds = Turns({"bare": bare, "build": build}, 3)
    return {"build_over_bare": round(seconds.ratio("bare", "build"), 3), "build_images": len(crops)}


def make_model(work: Path) -> Embedder:
    rng = np.random.default_rng(0)
    network = parser.parse_model(NETWORK)
    for name, shape in WEIGHTS.items():
        weights = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        network.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), name))
    (work / "network.onnx").write_bytes(network.SerializeToString())
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), colour="rgb")
    adopt(
        work / "network.onnx",
        work / "model",
        Feeding(height=256, width=128, resize="bilinear", preprocessing=preprocessing),
    )
    return open_embedder(work / "model")


def draw_crops(folder: Path, count: int) -> Sequence[Path]:
    spec = SynthSpec(
        kind="person", train_identities=0, test_identities=count // 4, cameras=4, images_per_camera=2, seed=1
    )
    write_dataset(folder, spec)
    return sorted((folder / GALLERY_PART).glob("*.jpg"))


class Turns:
    """Seconds of several works, taken in turn, so that a slow moment of the machine hits all; the first turn warms."""

    def __init__(self, works: Mapping[str, Callable[[], object]], rounds: int) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(rounds + 1):
            for name, work in works.items():
                time.sleep(REST_SECONDS)
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
