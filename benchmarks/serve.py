"""The server under load, against the same work done bare: decoding, the engine and the scan in one process.

    python -P benchmarks/serve.py [--quick]

A real server answers searches by image over gRPC; its clients are a process of their own on the same cores. Beside it,
turn by turn in the same run, the same images are decoded (on all cores), embedded and ranked by the same code without a
server: one by one, against one client's median, and in batches of as many as the server says it computed at a time, on
all lanes of its engine, against the images per second that CLIENTS clients get. The network is a ResNet-50-IBN-a as
benchmarks/artifact.py exports it, in fp32 and in int8; the answers must be equal to the bare ones, entry by entry and
score by score.

Then a server whose engine, decoder and scan cost nothing shows what a call itself costs: calls of 20 kB per second of
its processor time. Where that is below its bound, the profile says where the time goes: what the event loop's thread
spends, by package, and what all other threads of the process do, gRPC's own among them; beside it, what is left of the
bare work: NumPy's calls for one embedding and ten rows.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from reidserve.embed import (
    Artifact,
    Batch,
    Contract,
    Embedder,
    Embeddings,
    Image,
    Precision,
    open_embedder,
    read_artifact,
)
from reidserve.embed.canaries import Canaries
from reidserve.embed.cores import cores
from reidserve.embed.engines import start_session
from reidserve.export.derive.addition import publish
from reidserve.index import Entry, Origin, Record, Snapshot, open_gallery, read_snapshot
from reidserve.index.search.threads import undivided_products
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.gate import Gate
from reidserve.server.queries.pipeline import Pipeline
from reidserve.server.telemetry import Telemetry
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.handlers import handlers
from reidserve.server.wire.search import METHODS

CLIENTS = 16
TOP_K = 10
CALL_BYTES = 20_000
PRECISIONS: Sequence[Precision] = ("fp32", "int8")

SERVED_OVER_BARE = 0.95
"""Least images/s of CLIENTS clients over those of the bare work at the same batch, of one precision at least."""
ONE_OVER_BARE = 1.25
"""Most of one client's median over the bare work's."""
CALLS_PER_CORE = 5_000
"""Least calls/s per core with nothing to do, or the profile is in the report."""

_SEARCH = "/reid.v1.SearchService/Search"
_BARE_SECONDS = 0.2
_READ = 8  # of so many replies one is read

Figures = dict[str, Any]
Hits = list[tuple[str, float]]
Ask = Callable[..., Any]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="seconds: ResNet-18-IBN-a at 64x32, 1,000 entries")
    arguments.add_argument("--clients", action="store_true", help="be the clients of a benchmark")
    arguments.add_argument("--free", type=Path, metavar="FOLDER", help="be a server that has nothing to do")
    arguments.add_argument("--profile", action="store_true", help="with --free: print where the time went")
    asked = arguments.parse_args()
    if asked.clients:
        return be_clients()
    if asked.free:
        return asyncio.run(be_free(asked.free, profile=asked.profile))
    quick = bool(asked.quick)
    # The server has products undivided too: threads that spin would slow the bare work down, not the server's.
    with tempfile.TemporaryDirectory() as folder, clients_beside() as clients, undivided_products():
        work = Path(folder)
        prepare(work, quick=quick)
        by_precision = {precision: measure(work, precision, clients, quick=quick) for precision in PRECISIONS}
        free = measure_free(work, clients, quick=quick)
    right = all(figures["equal_answers"] for figures in by_precision.values())
    report = {
        "name": "serve",
        "holds": right and (quick or within_bounds(by_precision, free)),
        "quick": quick,
        "cores": cores(),
        "clients": CLIENTS,
        "entries": 1_000 if quick else 20_000,
        **{f"{name}_{precision}": value for precision in PRECISIONS for name, value in by_precision[precision].items()},
        **free,
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio", "pillow")},
    }
    print(json.dumps(report))
    return 0 if report["holds"] else 1


def within_bounds(by_precision: Mapping[Precision, Figures], free: Figures) -> bool:
    return (
        max(figures["served_over_bare"] for figures in by_precision.values()) >= SERVED_OVER_BARE
        and max(figures["one_client_over_bare"] for figures in by_precision.values()) <= ONE_OVER_BARE
        and (free["free_calls_per_core_second"] >= CALLS_PER_CORE or bool(free["free_microseconds"]))
    )


# What is served.


def prepare(work: Path, *, quick: bool) -> None:
    """A model with its flavours, images to ask about, and a gallery of random rows."""
    artifact = runpy.run_path(str(Path(__file__).with_name("artifact.py")))
    crops = artifact["draw_crops"](work / "crops", 32 if quick else 128)
    checkpoint = artifact["make_checkpoint"](work / "made.safetensors", crops[0][:32], quick=quick)
    contract = with_canaries(artifact["make_artifact"](checkpoint, work / "model", crops[0][:32]))
    (work / "images").mkdir()
    for place, data in enumerate(crops[1]):
        (work / "images" / f"{place:04}.jpg").write_bytes(data)
    make_gallery(work / "bench.gallery", contract, 1_000 if quick else 20_000)


def with_canaries(artifact: Artifact) -> Contract:
    """The contract of an artifact once it has canaries of what is served."""
    embeddings = {}
    for precision in PRECISIONS:
        session = start_session(artifact, precision=precision)
        rows = Embedder(artifact.contract, session).embed_encoded(artifact.canaries.images)
        embeddings[session.engine] = rows.astype("<f4").tobytes()
    return publish(artifact, artifact.contract, Canaries(images=artifact.canaries.images, embeddings=embeddings), None)


def make_gallery(out: Path, contract: Contract, count: int) -> None:
    rng = np.random.default_rng(0)
    store = create_store(out, Origin(contract.identity, "fp32/onnxruntime-cpu", contract.dim))
    for start in range(0, count, 1000):
        rows = rng.standard_normal((min(1000, count - start), contract.dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        names = [f"{start + place:06}.jpg" for place in range(len(rows))]
        store.upsert(
            [
                Record(Entry(name, pid=name[:5], camid=name[5]), sha256(name.encode()).digest(), row)
                for name, row in zip(names, rows, strict=True)
            ]
        )
    store.close()


def read_images(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@contextmanager
def running(command: Sequence[object]) -> Iterator[tuple[subprocess.Popen[str], Figures]]:
    """A process and the first line that it says, until it is told to end."""
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        process.stdin.close()


def serving(
    work: Path, precision: Precision, *options: str
) -> AbstractContextManager[tuple[subprocess.Popen[str], Figures]]:
    """A server of what was prepared; says where it listens."""
    binary = Path(sys.executable).parent / "reid-serve"
    served = ("--model", work / "model", "--gallery", work / "bench.gallery", "--precision", precision)
    return running([binary, *served, "--listen", "127.0.0.1:0", "--json", *options])


class Clients:
    """The clients' process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, target: str, images: Path, **work: object) -> Figures:
        """What came of asking a server about the images of a folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"target": target, "images": str(images), **work}), file=self._process.stdin, flush=True)
        said: Figures = json.loads(self._process.stdout.readline())
        return said


@contextmanager
def clients_beside() -> Iterator[Clients]:
    with running([sys.executable, "-P", __file__, "--clients"]) as (process, _):
        yield Clients(process)


# What is measured.


def measure(work: Path, precision: Precision, clients: Clients, *, quick: bool) -> Figures:
    embedder = open_embedder(work / "model", precision=precision)
    bare = Bare(embedder, read_snapshot(work / "bench.gallery", identity=embedder.contract.identity))
    images = read_images(work / "images")
    with serving(work, precision) as (_, said), ThreadPoolExecutor(cores()) as pool:
        ask = partial(clients, said["listening"], work / "images")
        served: list[Hits] = [[(name, score) for name, score in hits] for hits in ask(do="answers")["hits"]]
        equal = served == [bare.search([data])[0] for data in images]
        seconds = 0.4 if quick else 5.0
        rounds = [take_turns(bare, ask, images, pool, seconds) for _ in range(1 if quick else 5)]
        by_batch = bare.engine_by_batch(images, (1, 8) if quick else (1, 2, 4, 8, 16), seconds)
    middle = {name: median(turn[name] for turn in rounds) for name in rounds[0]}
    return {
        "equal_answers": equal,
        **{name: round(value, 3) for name, value in middle.items()},
        "engine_images_per_second": {str(batch): round(rate, 1) for batch, rate in by_batch.items()},
    }


def take_turns(
    bare: "Bare", ask: Callable[..., Figures], images: Sequence[bytes], pool: ThreadPoolExecutor, seconds: float
) -> dict[str, float]:
    alone = ask(do="closed", clients=1, seconds=seconds)
    alone_bare = bare.one_by_one(images, seconds)
    many = ask(do="closed", clients=CLIENTS, seconds=seconds)
    batch = max(1, round(bare.lanes * many["batch_size"]))
    spent = bare.in_batches(images, batch, pool, seconds)
    whole = sum(spent.values())
    return {
        "one_client_over_bare": alone["p50"] / alone_bare,
        "one_client_p50_ms": 1000 * alone["p50"],
        "served_over_bare": many["rate"] * whole,
        "served_over_engine": many["rate"] * spent["engine"],
        "served_images_per_second": many["rate"],
        "batch_size": many["batch_size"],
        "p99_ms": 1000 * many["p99"],
        "clients_cores": many["cpu"],
        **{f"bare_{stage}_ms": 1000 * value for stage, value in spent.items()},
    }


class Bare:
    """The work of a search without a server.

    Attributes:
        lanes: how many batches the engine computes side by side.
    """

    def __init__(self, embedder: Embedder, snapshot: Snapshot) -> None:
        self.lanes = embedder.lanes
        self._embedder = embedder
        self._snapshot = snapshot

    def search(self, images: Sequence[bytes]) -> list[Hits]:
        """What each image finds."""
        return self._scan(self._embedder.embed_encoded(images))

    def one_by_one(self, images: Sequence[bytes], seconds: float) -> float:
        """The median of one image's time."""
        taken, until = list[float](), time.perf_counter() + seconds
        while time.perf_counter() < until:
            for data in images:
                start = time.perf_counter()
                self.search([data])
                taken.append(time.perf_counter() - start)
        return median(taken)

    def in_batches(
        self, images: Sequence[bytes], batch: int, pool: ThreadPoolExecutor, seconds: float
    ) -> dict[str, float]:
        """Seconds an image by stage, in batches of that size, decoded on all threads of the pool."""
        spent: dict[str, list[float]] = {"decode": [], "engine": [], "scan": []}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for start in range(0, len(images) - batch + 1, batch):
                marks = [time.perf_counter()]
                prepared = np.stack(list(pool.map(self._embedder.prepare, images[start : start + batch])))
                marks.append(time.perf_counter())
                rows = self._embedder.embed(prepared)
                marks.append(time.perf_counter())
                self._scan(rows)
                marks.append(time.perf_counter())
                for stage, taken in zip(spent.values(), np.diff(marks), strict=True):
                    stage.append(taken / batch)
        return {stage: median(taken) for stage, taken in spent.items()}

    def engine_by_batch(self, images: Sequence[bytes], batches: Sequence[int], seconds: float) -> dict[int, float]:
        """The engine's images/s by how many it is given at once, which is what its cap is chosen by, in turn."""
        prepared = np.stack([self._embedder.prepare(data) for data in images[: max(batches)]])
        taken: dict[int, list[float]] = {batch: [] for batch in batches}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for batch in batches:
                start = time.perf_counter()
                self._embedder.embed(prepared[:batch])
                taken[batch].append((time.perf_counter() - start) / batch)
        return {batch: 1 / median(some) for batch, some in taken.items()}

    def _scan(self, rows: Embeddings) -> list[Hits]:
        found = self._snapshot.hits(self._snapshot.search(rows, top_k=TOP_K))
        return [[(hit.entry.id, hit.score) for hit in hits] for hits in found]


# The clients' process.


def be_clients() -> int:
    """Do what lines of JSON ask for, and say what came of each."""
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(do(**json.loads(line)))), flush=True)
    return 0


async def do(target: str, images: str, **work: Any) -> Figures:  # noqa: ANN401
    requests = [
        reid_pb2.SearchRequest(image=data, top_k=TOP_K).SerializeToString() for data in read_images(Path(images))
    ]
    kinds: Mapping[str, Callable[..., Any]] = {"answers": answers, "closed": closed, "open": offered}
    async with grpc.aio.insecure_channel(target) as channel:
        ask: Ask = channel.unary_unary(_SEARCH)  # raw bytes: what clients cost is taken from the server's cores
        await ask(requests[0])
        said: Figures = await kinds[work.pop("do")](ask, requests, **work)
    return said


async def answers(ask: Ask, requests: Sequence[bytes]) -> Figures:
    """What each image finds."""
    replies = [reid_pb2.SearchResponse.FromString(await ask(request)) for request in requests]
    return {"hits": [[(hit.entry_id, hit.score) for hit in reply.hits] for reply in replies]}


async def closed(ask: Ask, requests: Sequence[bytes], *, clients: int, seconds: float) -> Figures:
    """Clients that ask again as soon as they are answered."""
    taken, kept = list[float](), list[bytes]()
    began = time.perf_counter()

    async def be_one(place: int) -> None:
        while (start := time.perf_counter()) < began + seconds:
            reply = await ask(requests[place % len(requests)])
            taken.append(time.perf_counter() - start)
            if not len(taken) % _READ:
                kept.append(reply)
            place += clients

    cpu = time.process_time()
    await asyncio.gather(*map(be_one, range(clients)))
    lasted = time.perf_counter() - began
    sizes = [reid_pb2.SearchResponse.FromString(reply).batch_size for reply in kept]
    return {
        "calls": len(taken),
        "rate": len(taken) / lasted,
        "p50": float(np.median(taken)),
        "p99": float(np.quantile(taken, 0.99)),
        "batch_size": float(np.mean(sizes)),
        "cpu": (time.process_time() - cpu) / lasted,
    }


async def offered(ask: Ask, requests: Sequence[bytes], *, rate: float, seconds: float) -> Figures:
    """Calls that come at a rate, whatever becomes of those before them; the first quarter only warms."""
    outcomes: list[tuple[str, float, float]] = []

    async def be_one(place: int) -> None:
        start = time.perf_counter()
        try:
            await ask(requests[place % len(requests)], timeout=60)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        end = time.perf_counter()
        outcomes.append((code, end - start, end - began))

    began, cpu = time.perf_counter(), time.process_time()
    calls = []
    for place in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + place / rate - time.perf_counter()))
        calls.append(asyncio.create_task(be_one(place)))
    sent = time.perf_counter() - began
    cpu = (time.process_time() - cpu) / sent
    await asyncio.gather(*calls)
    loaded = [(code, taken) for code, taken, end in outcomes if sent / 4 <= end <= sent]
    by_code = {code: [taken for some, taken in loaded if some == code] for code in {code for code, _ in loaded}}
    return {
        "offered": len(calls) / sent,
        "codes": Counter(code for code, _, _ in outcomes),
        "goodput": len(by_code.get("OK", ())) / (sent * 3 / 4),
        "p99": {code: float(np.quantile(taken, 0.99)) for code, taken in by_code.items()},
        "cpu": cpu,
    }


# What a call costs by itself.


def measure_free(work: Path, clients: Clients, *, quick: bool) -> Figures:
    """Calls of 20 kB that ask for nothing, by processor seconds of the server, and where those go."""
    (work / "calls").mkdir()
    (work / "calls" / "call").write_bytes(np.random.default_rng(0).bytes(CALL_BYTES))
    make_gallery(work / "free.gallery", read_artifact(work / "model").contract, TOP_K)
    seconds = 0.5 if quick else 10.0
    calls, profiled = ask_free(work, clients, seconds, "--profile")
    # A profile costs more than what it looks at: what it took in all is taken from a run without.
    calls, plain = (calls, profiled) if quick else ask_free(work, clients, seconds)
    loop, others = (1e6 * plain[name] / calls for name in ("loop_cpu", "other_cpu"))
    return {
        "free_calls_per_core_second": round(1e6 / (loop + others)),
        "free_microseconds": {
            **{package: round(loop * share, 1) for package, share in profiled["shares"].items()},
            "other threads": round(others, 1),
        },
        "free_bare_microseconds": round(1e6 * plain["bare"], 1),
    }


def ask_free(work: Path, clients: Clients, seconds: float, *options: str) -> tuple[int, Figures]:
    """How many calls a server with nothing to do answered, and what it says of its time."""
    with running([sys.executable, "-P", __file__, "--free", work, *options]) as (server, said):
        answered = clients(said["listening"], work / "calls", do="closed", clients=CLIENTS, seconds=seconds)
        server.terminate()
        assert server.stdout is not None
        told: Figures = json.loads(server.stdout.readline())
    return answered["calls"], told


class Nothing:
    """An engine that has every embedding at once: the first unit vector."""

    engine = "fp32/onnxruntime-cpu"
    max_batch = CLIENTS
    lanes = 1

    def __init__(self, dim: int) -> None:
        self._rows = np.zeros((CLIENTS, dim), np.float32)
        self._rows[:, 0] = 1

    def __call__(self, batch: Batch, /) -> NDArray[np.float32]:
        """The same for every image."""
        return self._rows[: len(batch)]


class Free(Embedder):
    """A model that costs nothing, its decoder included."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract, Nothing(contract.dim))
        self._image = np.zeros((contract.height, contract.width, 3), np.uint8)

    def prepare(self, data: bytes) -> Image:
        """The same for all bytes."""
        return self._image


async def be_free(work: Path, *, profile: bool) -> int:
    """Serve a model that costs nothing until SIGTERM, then say what the processor's time went to."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    embedder = Free(read_artifact(work / "model").contract)
    opened = open_gallery(work / "free.gallery")
    bare = Bare(embedder, opened.snapshot).one_by_one([b"an image"], _BARE_SECONDS)
    pipeline = Pipeline(embedder, {"free": opened})
    deployment = Deployment()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers(Calls(deployment, Gate(), Telemetry()), METHODS))
    await deployment.replace(Served(pipeline, {}, 0))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    whole, loop = time.process_time(), time.thread_time()
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    print(json.dumps({"listening": address}), flush=True)
    await stop.wait()
    profiler.disable()
    whole, loop = time.process_time() - whole, time.thread_time() - loop
    shares = shares_of(profiler) if profile else {}
    print(json.dumps({"loop_cpu": loop, "other_cpu": whole - loop, "shares": shares, "bare": bare}), flush=True)
    await server.stop(0)
    await deployment.close()
    return 0


def shares_of(profiler: cProfile.Profile) -> dict[str, float]:
    """The part of the event loop's time that each package took, waiting left out."""
    spent = Counter[str]()
    # Its table is documented, and typeshed does not know it.
    for (file, _, function), (_, _, seconds, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if "poll" not in function:
            spent[package_of(file, function)] += seconds
    return {package: seconds / spent.total() for package, seconds in spent.most_common()}


def package_of(file: str, function: str) -> str:
    """Such as "server/queries", "asyncio" or "grpc"; what is written in C goes by the function's name."""
    text = file if file != "~" else function
    rooms = (room for room in ("server/queries", "server/wire", "server", "asyncio") if f"{room}/" in text)
    return next(rooms, next((name for name in ("grpc", "cython", "protobuf", "_asyncio") if name in text), "other"))


if __name__ == "__main__":
    sys.exit(main())
