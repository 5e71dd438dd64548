"""Models and galleries that take each other's places, and a server that is told to stop, all under load.

    python -P benchmarks/reload.py [--rounds N] [--seed S] [--quick]

Clients search by image and ask for embeddings without a pause. Meanwhile the server reloads its model, N times one of
the same identity whose gallery stays, and N times one of another identity with the gallery that was built by it. No
call may fail, and each answer must be, bit for bit, what one of the two models and its own gallery give: the two
galleries hold other ids, so that an answer of two models would show.

Then N servers, one after the other, get SIGTERM under the same load, a client's next call at a time. Every call must
be answered, or refused in words (UNAVAILABLE, NOT_SERVING), and the server must end with 0.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from itertools import count
from pathlib import Path

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from onnx import numpy_helper, parser

from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.embed import Embedder, Preprocessing, open_embedder
from reidserve.export.convert import Feeding, adopt
from reidserve.index import Entry, Origin, Record, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.proto.reid.v1.reid_pb2_grpc import ModelServiceStub, SearchServiceStub

ROUNDS, QUICK_ROUNDS = 20, 2
CLIENTS = 4
DIM = 64
ENTRIES = 2_000
TOP_K = 10
PAUSE_SECONDS = 0.1  # between reloads, so that both models answer
LONGEST_LOAD_SECONDS = 1.0  # before SIGTERM
PROBE_PERIOD_SECONDS = 0.2
PATIENCE_SECONDS = 60.0

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 3, 128, 64] pixels) => (float[N, 64] feature)
{
    grid = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (pixels)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (grid, w1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r1, w2)
    pooled = GlobalMaxPool (c2)
    feature = Flatten (pooled)
}
"""

GALLERIES = {"a": "people.gallery", "b": "people-rebuilt.gallery"}
"""The folder of each model's gallery; both are served as "people"."""

Hits = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Right:
    """What a model answers to each image.

    Attributes:
        embeddings: as bytes, by image.
        hits: ids and scores in its own gallery, by image.
    """

    embeddings: Sequence[bytes]
    hits: Sequence[Hits]


@dataclass
class Tally:
    """What clients have seen.

    Attributes:
        answered: calls by the identity of the model that answered.
        wrong: what was not as it should be.
        refused: calls that were refused in words.
    """

    answered: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, identity: str) -> None:
        """A right answer."""
        with self._lock:
            self.answered[identity] = self.answered.get(identity, 0) + 1

    def blame(self, what: str) -> None:
        """Something is wrong."""
        with self._lock:
            self.wrong.append(what)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, help=f"of each (default {ROUNDS})")
    arguments.add_argument("--seed", type=int, default=0, help="when a server is told to stop (default 0)")
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} of each")
    given = arguments.parse_args()
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = draw_images(work)
        rights = dict(make_side(work, name, seed, images) for seed, name in enumerate(("a", "b")))
        adopt_network(work, "a", 0, "again")  # byte by byte the same model in another folder
        reloaded, seconds = reload_under_load(work, images, rights, rounds)
        stopped, codes = stop_under_load(work, images, rights, rounds, random.Random(given.seed))
    wrong = reloaded.wrong + stopped.wrong
    # Both models must have answered, or nothing was seen.
    holds = not wrong and set(reloaded.answered) == set(rights) and codes == [0] * rounds
    report = {
        "name": "reload",
        "holds": holds,
        "quick": given.quick,
        "model_reloads": rounds,
        "gallery_swaps": rounds,
        "answered_meanwhile": sum(reloaded.answered.values()),
        "failed_meanwhile": len(reloaded.wrong),
        "reload_seconds_median": round(float(np.median(seconds)), 3) if seconds else None,
        "stops": len(codes),
        "exit_codes": sorted(set(codes)),
        "answered_before_stops": sum(stopped.answered.values()),
        "refused_in_words": stopped.refused,
        "failed_at_stops": len(stopped.wrong),
        "wrong": wrong[:5],
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def draw_images(work: Path) -> list[bytes]:
    spec = SynthSpec(train_identities=0, test_identities=4, cameras=2, images_per_camera=2, junk=0, distractors=0)
    write_dataset(work / "data", spec)
    return [path.read_bytes() for path in sorted((work / "data").glob("*/*.jpg"))[:16]]


def adopt_network(work: Path, name: str, seed: int, folder: str) -> Embedder:
    rng = np.random.default_rng(seed)
    network = parser.parse_model(NETWORK)
    for weight, shape in (("w1", (32, 3, 3, 3)), ("w2", (DIM, 32, 3, 3))):
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        network.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), weight))
    path = work / f"{name}.onnx"
    path.write_bytes(network.SerializeToString())
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), colour="rgb")
    (work / "models").mkdir(exist_ok=True)
    adopt(path, work / "models" / folder, Feeding(height=128, width=64, resize="bilinear", preprocessing=preprocessing))
    return open_embedder(work / "models" / folder)


def make_side(work: Path, name: str, seed: int, images: Sequence[bytes]) -> tuple[str, Right]:
    """A model, a gallery of its embeddings, and what they answer."""
    embedder = adopt_network(work, name, seed, name)
    rng = np.random.default_rng(seed)
    embeddings = embedder.embed_encoded(images)
    rows = np.concatenate([embeddings, rng.standard_normal((ENTRIES - len(images), DIM), np.float32)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    folder = work / "galleries" / GALLERIES[name]
    store = create_store(folder, Origin(embedder.contract.identity, embedder.engine, DIM))
    names = [f"{name}-{place:05}" for place in range(len(rows))]
    store.upsert([Record(Entry(one), sha256(one.encode()).digest(), row) for one, row in zip(names, rows, strict=True)])
    store.close()
    snapshot = read_snapshot(folder, identity=embedder.contract.identity)
    ranking = snapshot.search(embeddings, top_k=TOP_K)
    ids = {row: entry.id for row, entry in snapshot.listed()}
    hits = [
        tuple((ids[row], float(score)) for row, score in zip(found, scores, strict=True))
        for found, scores in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
    ]
    return embedder.contract.identity, Right([row.astype("<f4").tobytes() for row in embeddings], hits)


@contextmanager
def serving(work: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    binary = str(Path(sys.executable).parent / "reid-serve")
    told = {
        "--model": work / "models" / "a",
        "--gallery": work / "galleries" / GALLERIES["a"],
        "--models-root": work / "models",
        "--galleries-root": work / "galleries",
        "--listen": "127.0.0.1:0",
        "--probe-period": PROBE_PERIOD_SECONDS,
    }
    command = [binary, "--json", *(str(part) for pair in told.items() for part in pair)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["listening"]
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()


def reload_under_load(
    work: Path, images: Sequence[bytes], rights: Mapping[str, Right], rounds: int
) -> tuple[Tally, list[float]]:
    """Reload again and again while clients ask; what they saw, and how long each reload took."""
    tally, seconds, done = Tally(), list[float](), threading.Event()
    with serving(work) as (_, target), ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask_until, done.is_set, target, images, rights, tally, place) for place in range(CLIENTS)]
        try:
            with grpc.insecure_channel(target) as channel:
                model = ModelServiceStub(channel)
                for number in range(2 * rounds):
                    time.sleep(PAUSE_SECONDS)
                    seconds.append(reload_once(model, number))
            time.sleep(PAUSE_SECONDS)
        except grpc.RpcError as error:
            tally.blame(f"reload {len(seconds)} failed: {error.code()} {error.details()}")
        finally:
            done.set()
        for one in asking:
            one.result()
    return tally, seconds


def reload_once(model: ModelServiceStub, number: int) -> float:
    """The same model and another one in turn; of both, the other folder."""
    turn = number // 2 % 2
    if number % 2:
        name = "ba"[turn]
        request = reid_pb2.ReloadRequest(model=name, galleries={"people": GALLERIES[name]})
    else:
        # Of the identity that serves: a, and after every other swap b.
        request = reid_pb2.ReloadRequest(model=("again", "b")[turn])
    response: reid_pb2.ReloadResponse = model.Reload(request, timeout=PATIENCE_SECONDS)
    return response.seconds


def stop_under_load(
    work: Path, images: Sequence[bytes], rights: Mapping[str, Right], rounds: int, chance: random.Random
) -> tuple[Tally, list[int]]:
    """Tell servers to stop while clients ask; what they saw, and the exit codes."""
    tally, codes = Tally(), list[int]()
    for _ in range(rounds):
        with serving(work) as (process, target), ThreadPoolExecutor(CLIENTS) as pool:
            asking = [
                pool.submit(ask_until, lambda: False, target, images, rights, tally, place) for place in range(CLIENTS)
            ]
            time.sleep(LONGEST_LOAD_SECONDS * chance.random())
            process.send_signal(signal.SIGTERM)
            codes.append(process.wait(PATIENCE_SECONDS))
            for one in asking:
                one.result()
    return tally, codes


def ask_until(
    done: Callable[[], bool],
    target: str,
    images: Sequence[bytes],
    rights: Mapping[str, Right],
    tally: Tally,
    place: int,
) -> None:
    """Ask without a pause, until it is done or the server says that it goes."""
    with grpc.insecure_channel(target) as channel:
        stub = SearchServiceStub(channel)
        for number in count(place):
            if done():
                return
            chosen = number % len(images)
            try:
                ask(stub, images[chosen], chosen, rights, tally)
            except grpc.RpcError as error:
                if reason_of(error) == ("UNAVAILABLE", "NOT_SERVING"):
                    tally.refused += 1
                else:
                    tally.blame(f"{error.code()} {error.details()}")
                return


def ask(stub: SearchServiceStub, image: bytes, chosen: int, rights: Mapping[str, Right], tally: Tally) -> None:
    found = stub.Search(reid_pb2.SearchRequest(image=image, top_k=TOP_K), timeout=PATIENCE_SECONDS)
    hits = tuple((hit.entry_id, hit.score) for hit in found.hits)
    if found.model.identity not in rights or hits != rights[found.model.identity].hits[chosen]:
        tally.blame(f"image {chosen} by {found.model.identity[:12]} was answered with {hits[:2]}")
    tally.count(found.model.identity)
    made = stub.Embed(reid_pb2.EmbedRequest(image=image), timeout=PATIENCE_SECONDS)
    if made.model.identity not in rights or made.embedding != rights[made.model.identity].embeddings[chosen]:
        tally.blame(f"image {chosen} was embedded otherwise by {made.model.identity[:12]}")
    tally.count(made.model.identity)


def reason_of(error: grpc.RpcError) -> tuple[str, str]:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return error.code().name, ""
    return error.code().name, info.reason


if __name__ == "__main__":
    sys.exit(main())
