"""A million calls of every kind against a real server with a free engine: nothing of them may stay.

    python -P benchmarks/soak.py [--calls N] [--seed S] [--leak BYTES] [--quick] [-- ARGUMENTS OF reid-serve]

Calls come in rounds, many at a time over new connections: searches by image, embedding, entry and several at once,
embeddings, lists; images, messages and names that are wrong; calls that are cancelled, that have no time, and whole
rankings left after their first page. Each must end with the status that its kind may have, and each answer is compared
with brute force. After each round, when nothing is under way, the server's memory, file descriptors and threads are
read, and its metrics over HTTP: they must have hardly more lines than before, and have counted as many calls as ended.

It holds if, after the first fifth of the rounds, memory grows by no more than 8 bytes a call (one pointer; the slope is
Theil and Sen's, the median of those between any two rounds), neither descriptors nor threads are more than two above
what they were, nor lines of metrics more than twenty, no call ended as it must not, and the server ends with 0. A quick
run is too short for pointers: it is held to 2,000 bytes a call, a third of an image. `--leak` makes the engine keep so
many bytes an image, and must fail.
"""

import argparse
import asyncio
import itertools
import json
import random
import runpy
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from PIL import Image

from reidserve.index import Entry, Origin, Record, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2

FREE = Path(__file__).with_name("parts") / "free_engine.py"
HEIGHT, WIDTH = 64, 32
IMAGES, ENTRIES, TOP_K, BATCH = 16, 200, 5, 3
CALLS, CALLS_A_ROUND = 1_000_000, 5_000
QUICK_CALLS, FEWEST_ROUNDS = 6_000, 12
CONNECTIONS, AT_ONCE = 4, 48
WARM_UP = 0.2  # of the rounds: pools fill, caches grow
MOST_GROWTH, QUICK_MOST_GROWTH = 8.0, 2000.0  # bytes a call
MOST_MORE = {"descriptors": 2, "threads": 2, "metric_lines": 20}
"""Above what they were in the warm-up. A way for a method to end that comes for the first time takes lines of metrics,
and one that comes late is no leak: a label of each call would take thousands."""
NAMED = 5
SETTLING_SECONDS = 3.0
LONGEST_MOMENT = 0.5  # seconds

_SEARCH, _BATCH, _RANK, _EMBED, _GALLERY, _LIST = (
    f"/reid.v1.{name}"
    for name in (
        "SearchService/Search", "SearchService/BatchSearch", "SearchService/Rank", "SearchService/Embed",
        "GalleryService/GetGallery", "GalleryService/ListEntries",
    )
)  # fmt: skip

Hits = Sequence[tuple[str, float]]
_Any = TypeVar("_Any")
_Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
_Stream = grpc.aio.UnaryStreamMultiCallable[bytes, bytes]


@dataclass(frozen=True)
class Material:
    """What is asked with, and what must be answered.

    Attributes:
        images: encoded.
        embeddings: of the images, as bytes.
        hits: of each image, best first.
        entry_hits: of the gallery's first entry.
    """

    images: Sequence[bytes]
    embeddings: Sequence[bytes]
    hits: Sequence[Hits]
    entry_hits: Hits


@dataclass(frozen=True)
class Kind:
    """One kind of call.

    Attributes:
        share: how many of a hundred calls.
        codes: which statuses it may end with.
        make: makes one; gives its status and whether an answer that came was right.
    """

    share: int
    codes: frozenset[str]
    make: Callable[["Caller"], Awaitable[tuple[str, bool]]]


@dataclass
class Caller:
    """Makes calls over one connection, of random choices."""

    channel: grpc.aio.Channel
    material: Material
    rng: random.Random


async def image(caller: Caller) -> tuple[str, bool]:
    place = caller.rng.randrange(IMAGES)
    request = reid_pb2.SearchRequest(image=caller.material.images[place], top_k=TOP_K)
    return await _search(caller, request, caller.material.hits[place])


async def embedding(caller: Caller) -> tuple[str, bool]:
    place = caller.rng.randrange(IMAGES)
    request = reid_pb2.SearchRequest(embedding=caller.material.embeddings[place], top_k=TOP_K)
    return await _search(caller, request, caller.material.hits[place])


async def batch(caller: Caller) -> tuple[str, bool]:
    places = caller.rng.sample(range(IMAGES), BATCH)
    requests = [reid_pb2.SearchRequest(image=caller.material.images[place], top_k=TOP_K) for place in places]
    code, raw = await _ask(caller, _BATCH, reid_pb2.BatchSearchRequest(requests=requests))
    found = [hits_of(result.response) for result in reid_pb2.BatchSearchResponse.FromString(raw).results]
    return code, found == [caller.material.hits[place] for place in places]


async def entry(caller: Caller) -> tuple[str, bool]:
    return await _search(caller, reid_pb2.SearchRequest(entry_id=name_of(0), top_k=TOP_K), caller.material.entry_hits)


async def embed(caller: Caller) -> tuple[str, bool]:
    place = caller.rng.randrange(IMAGES)
    code, raw = await _ask(caller, _EMBED, reid_pb2.EmbedRequest(image=caller.material.images[place]))
    return code, reid_pb2.EmbedResponse.FromString(raw).embedding == caller.material.embeddings[place]


async def gallery(caller: Caller) -> tuple[str, bool]:
    code, raw = await _ask(caller, _GALLERY, reid_pb2.GetGalleryRequest())
    return code, reid_pb2.GetGalleryResponse.FromString(raw).gallery.entries == ENTRIES


async def listed(caller: Caller) -> tuple[str, bool]:
    code, raw = await _ask(caller, _LIST, reid_pb2.ListEntriesRequest(page_size=TOP_K))
    entries = reid_pb2.ListEntriesResponse.FromString(raw).entries
    return code, [entry.entry_id for entry in entries] == [name_of(place) for place in range(TOP_K)]


async def cancelled(caller: Caller) -> tuple[str, bool]:
    search: _Unary = caller.channel.unary_unary(_SEARCH)
    call = search(_any_search(caller))
    await asyncio.sleep(_moment(caller))
    call.cancel()
    return (await call.code()).name, True


async def late(caller: Caller) -> tuple[str, bool]:
    code, _ = await _ask(caller, _SEARCH, _any_search(caller), timeout=_moment(caller))
    return code, True


async def left(caller: Caller) -> tuple[str, bool]:
    request = reid_pb2.RankRequest(embedding=caller.material.embeddings[0])
    rank: _Stream = caller.channel.unary_stream(_RANK)
    call = rank(request.SerializeToString())
    raw = await call.read()
    call.cancel()
    right = isinstance(raw, bytes) and len(reid_pb2.RankResponse.FromString(raw).rows) == 8 * ENTRIES
    return (await call.code()).name, right


async def no_image(caller: Caller) -> tuple[str, bool]:
    damaged = bytearray(caller.rng.choice(caller.material.images))
    damaged[:8] = caller.rng.randbytes(8)
    code, _ = await _ask(caller, _SEARCH, reid_pb2.SearchRequest(image=bytes(damaged)))
    return code, True


async def no_entry(caller: Caller) -> tuple[str, bool]:
    code, _ = await _ask(caller, _SEARCH, reid_pb2.SearchRequest(entry_id=f"nobody {caller.rng.random()}"))
    return code, True


async def no_message(caller: Caller) -> tuple[str, bool]:
    code, _ = await _ask(caller, _SEARCH, b"\x0a\xff\xff\xff\xff\x0f" + caller.rng.randbytes(64))
    return code, True


def _moment(caller: Caller) -> float:
    """Seconds within which a call may be anywhere: on its way, decoded, in a batch, answered."""
    return LONGEST_MOMENT * caller.rng.random() ** 3


def _any_search(caller: Caller) -> bytes:
    return reid_pb2.SearchRequest(image=caller.rng.choice(caller.material.images)).SerializeToString()


async def _search(caller: Caller, request: reid_pb2.SearchRequest, expected: Hits) -> tuple[str, bool]:
    code, raw = await _ask(caller, _SEARCH, request)
    return code, hits_of(reid_pb2.SearchResponse.FromString(raw)) == expected


def hits_of(response: reid_pb2.SearchResponse) -> Hits:
    return [(hit.entry_id, hit.score) for hit in response.hits]


async def _ask(
    caller: Caller, method: str, request: Message | bytes, *, timeout: float | None = None
) -> tuple[str, bytes]:
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    call: _Unary = caller.channel.unary_unary(method)
    try:
        return "OK", await call(raw, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return error.code().name, b""


KINDS: Mapping[str, Kind] = {
    "image": Kind(38, frozenset({"OK"}), image),
    "batch": Kind(2, frozenset({"OK"}), batch),
    "embedding": Kind(15, frozenset({"OK"}), embedding),
    "entry": Kind(10, frozenset({"OK"}), entry),
    "embed": Kind(5, frozenset({"OK"}), embed),
    "gallery": Kind(4, frozenset({"OK"}), gallery),
    "listed": Kind(4, frozenset({"OK"}), listed),
    "cancelled": Kind(8, frozenset({"OK", "CANCELLED"}), cancelled),
    "late": Kind(5, frozenset({"OK", "DEADLINE_EXCEEDED"}), late),
    "left": Kind(2, frozenset({"OK", "CANCELLED"}), left),
    "no_image": Kind(3, frozenset({"INVALID_ARGUMENT"}), no_image),
    "no_entry": Kind(2, frozenset({"NOT_FOUND"}), no_entry),
    "no_message": Kind(2, frozenset({"INVALID_ARGUMENT"}), no_message),
}


@dataclass
class Tally:
    """What a run has seen.

    Attributes:
        ended: calls by kind and status.
        wrong: the first calls that ended as they must not, in words.
        states: the server's, after each round.
    """

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    states: list["State"] = field(default_factory=list)

    def check_counts(self) -> None:
        """See that the server counted what it answered; a call that was given up may not have reached it."""
        sent = sum(self.ended.values())
        given_up = sum(count for (_, code), count in self.ended.items() if code in {"CANCELLED", "DEADLINE_EXCEEDED"})
        if not sent - given_up <= self.states[-1].counted <= sent:
            self.wrong.append(f"{sent} calls ended, {given_up} given up; the server counted {self.states[-1].counted}")

    def count(self, name: str, code: str, *, right: bool) -> None:
        """A call of a kind ended."""
        self.ended[name, code] += 1
        if (code not in KINDS[name].codes or (code == "OK" and not right)) and len(self.wrong) < NAMED:
            self.wrong.append(f"{name}: {code}{', and another answer than brute force' * (code == 'OK')}")


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        pid: its process.
        target, http: where it listens.
    """

    pid: int
    target: str
    http: str


@dataclass(frozen=True)
class State:
    """A process when nothing is under way.

    Attributes:
        calls: how many it has had.
        memory: its own, bytes: what is not of files.
        descriptors, threads: how many.
        lines: of its metrics.
        counted: calls, by its metrics.
    """

    calls: int
    memory: int
    descriptors: int
    threads: int
    lines: int
    counted: int


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--calls", type=int, help=f"how many (default {CALLS:,})")
    arguments.add_argument("--seed", type=int, default=0, help="what is asked (default 0)")
    arguments.add_argument("--leak", type=int, default=0, help="bytes that the engine keeps of each image (default 0)")
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK_CALLS:,} calls")
    arguments.add_argument("served", nargs="*", help="what else reid-serve is told, behind --")
    given = arguments.parse_args()
    calls = given.calls or (QUICK_CALLS if given.quick else CALLS)
    # A round has costs of its own, connections and what reads the server, which few calls would not outweigh.
    rounds = max(FEWEST_ROUNDS, calls // CALLS_A_ROUND)

    start, tally = time.perf_counter(), Tally()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        material = prepare(work)
        with serving(work, given.leak, given.served) as (process, server):
            began = time.perf_counter()
            asyncio.run(soak(server, material, tally, calls // rounds, rounds, given.seed))
            seconds = time.perf_counter() - began
    tally.check_counts()
    found = figures(tally.states, QUICK_MOST_GROWTH if given.quick else MOST_GROWTH)
    holds = bool(found["flat"] and found["no_growth"]) and not tally.wrong and process.returncode == 0
    report = {
        "name": "soak",
        "holds": holds,
        "quick": given.quick,
        "seed": given.seed,
        "calls": sum(tally.ended.values()),
        "calls_a_second": round(sum(tally.ended.values()) / seconds),
        **found,
        "exit_code": process.returncode,
        "ended": {f"{name} {code}": count for (name, code), count in sorted(tally.ended.items())},
        "wrong": tally.wrong,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {name: version(name) for name in ("reidserve", "numpy", "grpcio", "protobuf", "pillow")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def figures(states: Sequence[State], most: float) -> dict[str, Any]:
    """What became of a process, and whether it grew by more than so many bytes a call."""
    growth, after = growth_of(states), warm(states)
    counts = {
        "descriptors": [state.descriptors for state in states],
        "threads": [state.threads for state in states],
        "metric_lines": [state.lines for state in states],
    }
    return {
        "memory_bytes_a_call": round(growth, 2),
        "most_bytes_a_call": most,
        "no_growth": growth <= most,
        "memory_MB": [round(state.memory / 1e6, 1) for state in (after[0], after[-1])],
        **{name: [min(warm(found)), max(warm(found))] for name, found in counts.items()},
        "flat": all(is_flat(found, MOST_MORE[name]) for name, found in counts.items()),
    }


def prepare(work: Path) -> Material:
    """A model of the free engine, a gallery, images, and what brute force answers."""
    free = runpy.run_path(str(FREE))
    free["make_model"](work / "model", height=HEIGHT, width=WIDTH)
    embedder = free["open_free"](work / "model")
    rng = np.random.default_rng(0)
    store = create_store(work / "soak.gallery", Origin(embedder.contract.identity, embedder.engine, free["DIM"]))
    rows = rng.standard_normal((ENTRIES, free["DIM"])).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [name_of(place) for place in range(ENTRIES)]
    store.upsert(
        [
            Record(Entry(name, pid=name[:4], camid=name[4:]), sha256(name.encode()).digest(), row)
            for name, row in zip(names, rows, strict=True)
        ]
    )
    store.close()
    images = [encoded(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)) for _ in range(IMAGES)]
    embeddings = embedder.embed_encoded(images)
    hits = [best(names, rows, query) for query in embeddings]
    entry_hits = best(names[1:], rows[1:], rows[0])
    assert len(read_snapshot(work / "soak.gallery")) == ENTRIES
    return Material(images, [row.astype("<f4").tobytes() for row in embeddings], hits, entry_hits)


def best(names: Sequence[str], rows: np.ndarray[Any, Any], query: np.ndarray[Any, Any]) -> Hits:
    """Brute force: each score by itself, best first, then in the order of the rows."""
    scores = [float(np.vecdot(row, query)) for row in rows]
    order = sorted(range(len(names)), key=lambda place: (-scores[place], place))
    return [(names[place], scores[place]) for place in order[:TOP_K]]


def name_of(place: int) -> str:
    return f"{place:06}"


def encoded(pixels: np.ndarray[Any, Any]) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@contextmanager
def serving(work: Path, leak: int, told: Sequence[str]) -> Iterator[tuple["subprocess.Popen[str]", Server]]:
    process = subprocess.Popen(
        [
            sys.executable, "-P", str(FREE), *(["--leak", str(leak)] if leak else []),
            "--model", str(work / "model"), "--gallery", str(work / "soak.gallery"),
            "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--metrics", "--json", *told,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline() or "null")
    if ready is None:
        raise SystemExit(f"the server ended with {process.wait(10)} before it was ready")
    try:
        yield process, Server(process.pid, ready["listening"], ready["http"])
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


async def soak(server: Server, material: Material, tally: Tally, calls: int, rounds: int, seed: int) -> None:
    """Rounds of so many calls, and the server's state after each."""
    for number in range(rounds):
        rng = random.Random(f"{seed} {number}")
        names = iter(rng.choices(list(KINDS), [kind.share for kind in KINDS.values()], k=calls))
        async with AsyncExitStack() as connections:
            channels = [
                await connections.enter_async_context(
                    grpc.aio.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)])
                )
                for _ in range(CONNECTIONS)
            ]
            callers = [Caller(channels[place % CONNECTIONS], material, rng) for place in range(AT_ONCE)]
            await asyncio.gather(*(work(caller, names, tally) for caller in callers))
        tally.states.append(await settled(server, (number + 1) * calls))


async def work(caller: Caller, names: Iterator[str], tally: Tally) -> None:
    for name in names:
        code, right = await KINDS[name].make(caller)
        tally.count(name, code, right=right)


async def settled(server: Server, calls: int) -> State:
    """The process's state when what the last calls held is gone: connections end a little after they are closed."""
    until = time.monotonic() + SETTLING_SECONDS
    state = read_state(server, calls)
    while time.monotonic() < until:
        await asyncio.sleep(0.05)
        before, state = state, read_state(server, calls)
        if (before.descriptors, before.threads) == (state.descriptors, state.threads):
            break
    return state


def read_state(server: Server, calls: int) -> State:
    with urllib.request.urlopen(f"http://{server.http}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    counted = sum(float(line.split()[-1]) for line in lines if line.startswith("reidserve_requests_total{"))
    proc = Path("/proc") / str(server.pid)
    told = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    memory = int(told["RssAnon"].split()[0]) * 1024
    return State(calls, memory, len(list((proc / "fd").iterdir())), int(told["Threads"]), len(lines), round(counted))


def warm(found: Sequence[_Any]) -> Sequence[_Any]:
    """What was found after the warm-up."""
    return found[int(len(found) * WARM_UP) :]


def growth_of(states: Sequence[State]) -> float:
    """Bytes of memory a call, after the warm-up: the median of the slopes between any two rounds."""
    return median(
        (second.memory - first.memory) / (second.calls - first.calls)
        for first, second in itertools.combinations(warm(states), 2)
    )


def is_flat(counts: Sequence[int], most: int) -> bool:
    """Whether no count after the warm-up is more than `most` above the largest in it."""
    start = int(len(counts) * WARM_UP)
    return max(counts[start:]) <= max(counts[:start]) + most


if __name__ == "__main__":
    sys.exit(main())
