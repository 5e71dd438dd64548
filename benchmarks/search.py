"""gRPC Search against the same work done bare: decoding, embedding and ranking in one process.

    python benchmarks/search.py [--quick]

One client asks a real server about one image after another, then eight clients at once; beside it, in the same
run, the same images are decoded, embedded and ranked by the same code without a server. The answers must be
equal, entry by entry and score by score. Figures are ratios of times taken in turn in one run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from onnx import numpy_helper, parser

from reidserve.client import Client
from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.embed import Embedder, Preprocessing, open_embedder
from reidserve.export.convert import Feeding, adopt
from reidserve.index import Entry, Origin, Record, Snapshot, read_snapshot
from reidserve.index.storage.store import create_store

DIM = 2048
TOP_K = 10
CLIENTS = 8
READY_SECONDS = 3  # what a server with 20,000 x 2048 promises

# As deep as a small backbone, with random weights: what is timed is the way, not the answer.
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 3, 256, 128] pixels) => (float[N, 2048] feature)
{
    grid = AveragePool <kernel_shape = [8, 4], strides = [8, 4]> (pixels)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (grid, w1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv <kernel_shape = [1, 1]> (r2, w3)
    pooled = GlobalMaxPool (c3)
    feature = Flatten (pooled)
}
"""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="under a minute: fewer entries, images and rounds")
    quick = arguments.parse_args().quick
    entries, queries, rounds = (2_000, 40, 3) if quick else (20_000, 200, 7)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = draw_images(work, queries)
        embedder = make_model(work)
        make_gallery(work / "bench.gallery", embedder, entries)
        snapshot = read_snapshot(work / "bench.gallery", identity=embedder.contract.identity)
        with serving(work) as (target, ready_seconds), Client(target) as client:
            figures, equal = measure(client, embedder, snapshot, images, rounds)
    holds = equal and (quick or ready_seconds < READY_SECONDS)
    report = {
        "name": "search",
        "holds": holds,
        "quick": quick,
        "entries": entries,
        "dim": DIM,
        **figures,
        "ready_seconds": round(ready_seconds, 2),
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio", "pillow")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def draw_images(work: Path, count: int) -> list[bytes]:
    spec = SynthSpec(
        kind="person", train_identities=0, test_identities=max(2, count // 8), cameras=4, images_per_camera=2, seed=1
    )
    write_dataset(work / "data", spec)
    paths = sorted((work / "data").glob("*/*.jpg"))
    return [path.read_bytes() for path in paths[:count]]


def make_model(work: Path) -> Embedder:
    rng = np.random.default_rng(0)
    network = parser.parse_model(NETWORK)
    for name, shape in (("w1", (64, 3, 3, 3)), ("w2", (128, 64, 3, 3)), ("w3", (DIM, 128, 1, 1))):
        weights = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        network.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), name))
    (work / "network.onnx").write_bytes(network.SerializeToString())
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), colour="rgb")
    feeding = Feeding(height=256, width=128, resize="bilinear", preprocessing=preprocessing)
    adopt(work / "network.onnx", work / "model", feeding)
    return open_embedder(work / "model")


def make_gallery(out: Path, embedder: Embedder, count: int) -> None:
    rng = np.random.default_rng(0)
    store = create_store(out, Origin(embedder.contract.identity, embedder.engine, DIM))
    for start in range(0, count, 1000):
        rows = rng.standard_normal((min(1000, count - start), DIM)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        names = [f"{start + place:06}.jpg" for place in range(len(rows))]
        store.upsert(
            [
                Record(Entry(name, pid=name[:5], camid=name[5]), sha256(name.encode()).digest(), row)
                for name, row in zip(names, rows, strict=True)
            ]
        )
    store.close()


@contextmanager
def serving(work: Path) -> Iterator[tuple[str, float]]:
    binary = str(Path(sys.executable).parent / "reid-serve")
    served = ["--model", str(work / "model"), "--gallery", str(work / "bench.gallery")]
    start = time.perf_counter()
    process = subprocess.Popen(
        [binary, *served, "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    seconds = time.perf_counter() - start
    try:
        yield ready["listening"], seconds
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def measure(
    client: Client, embedder: Embedder, snapshot: Snapshot, images: list[bytes], rounds: int
) -> tuple[dict[str, float], bool]:
    def bare(data: bytes) -> list[tuple[str, float]]:
        query = embedder.embed(embedder.prepare(data)[np.newaxis])
        (hits,) = snapshot.hits(snapshot.search(query, top_k=TOP_K))
        return [(hit.entry.id, hit.score) for hit in hits]

    def served(data: bytes) -> list[tuple[str, float]]:
        return [(hit.entry_id, hit.score) for hit in client.search(data, top_k=TOP_K).hits]

    def one_by_one(ask: Callable[[bytes], list[tuple[str, float]]]) -> list[list[tuple[str, float]]]:
        return [ask(data) for data in images]

    def at_once(ask: Callable[[bytes], list[tuple[str, float]]]) -> list[list[tuple[str, float]]]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(ask, images))

    expected = one_by_one(bare)
    equal = one_by_one(served) == expected and at_once(served) == expected
    alone, together = [], []
    for _ in range(rounds):
        bare_seconds = timed(lambda: one_by_one(bare))
        alone.append(timed(lambda: one_by_one(served)) / bare_seconds)
        together.append(timed(lambda: at_once(served)) / bare_seconds)
    return {
        "equal_answers": equal,
        "one_client_time_over_bare": round(median(alone), 3),
        "eight_clients_time_over_bare": round(median(together), 3),
        "images": len(images),
        "rounds": rounds,
    }, equal


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
