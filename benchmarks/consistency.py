"""Writes and searches at once through gRPC, of a server that is killed with SIGKILL again and again.

    python -P benchmarks/consistency.py [--seconds S] [--kills N] [--seed S] [--quick]

Three clients upsert, update and delete, one imports without an end, one makes snapshots, and three search meanwhile,
with filters and without. Each change of the gallery has a generation of its own, and so a log of the acknowledged
writes by generation says what the gallery held at each. Every answer must be, entry by entry and score by score,
brute force's at the generation that it names: a NumPy product over all that was there, settled by vecdot and then by
the order of writing.

The server is killed at random moments and started again on what is there. Then every acknowledged write must be in, no
generation that any answer named may be gone, and what else is in must be a write that was under way, as a whole; the
import goes on behind the last number that was acknowledged. At the end the gallery is read from the disk, and must be
what the log says, bit for bit.
"""

import argparse
import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
from numpy.typing import NDArray
from onnx import parser

from reidserve.embed import Embedding, Embeddings, Preprocessing, open_embedder
from reidserve.export.convert import Feeding, adopt
from reidserve.index import Entry, Origin, verify
from reidserve.index.storage.rows import Damage
from reidserve.index.storage.store import create_store, open_store
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.proto.reid.v1.reid_pb2_grpc import GalleryServiceStub, SearchServiceStub

if TYPE_CHECKING:
    from reidserve.proto.reid.v1.reid_pb2_grpc import GalleryServiceAsyncStub, SearchServiceAsyncStub

    Stubs = tuple[SearchServiceAsyncStub, GalleryServiceAsyncStub]

DIM = 96
WRITERS, SEARCHERS = 3, 3
IDS = 300  # of each writer, and of the import
CAMERAS = 5
VECTORS = 2048  # so few that some are written twice, and tie
SECONDS, QUICK_SECONDS = 60.0, 4.0
KILLS, QUICK_KILLS = 50, 2
READY_SECONDS = 60.0
ROUNDING = 1e-5  # by which a product may be off, far above what float32 and 96 dimensions are

# Without a weight: entries are written as embeddings.
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 3, 64, 32] pixels) => (float[N, 96] feature)
{
    grid = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixels)
    feature = Flatten (grid)
}
"""

Held = tuple[int, int]
"""What an entry holds: its mark, which no two writes share, and the number of its vector."""


class Wrong(Exception):  # noqa: N818
    """The server is not what it should be."""


@dataclass(frozen=True)
class Change:
    """What a generation changed.

    Attributes:
        put: entries that were written, in order.
        gone: ids of entries that were removed.
    """

    put: Mapping[str, Held] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Answer:
    """What a search was told.

    Attributes:
        generation: of the gallery that was searched.
        query: the number of the query's vector.
        top_k: how many hits were asked for.
        camera: whose entries might be found; None for every one's.
        ids, scores: of the hits, best first.
    """

    generation: int
    query: int
    top_k: int
    camera: int | None
    ids: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass
class Log:
    """What is known of the gallery.

    Attributes:
        changes: what each generation changed.
        states: what the entries of each client hold, as far as it knows.
        pending: changes that were asked for and not answered, by client; of an import what it has sent.
        answers: of searches.
        copies: generation and name of each snapshot.
        newest: the highest generation that any answer named.
        counts: how often what happened.
        mark: the last one that was given out.
    """

    changes: dict[int, Change] = field(default_factory=dict)
    states: dict[str, dict[str, Held]] = field(default_factory=dict)
    pending: dict[str, Change] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    copies: list[tuple[int, str]] = field(default_factory=list)
    newest: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    mark: int = 0

    def next_mark(self) -> int:
        """A mark that no write has."""
        self.mark += 1
        return self.mark

    def acknowledge(self, client: str, generation: int, changed: int, change: Change) -> None:
        """Keep what a client was told of its change."""
        state = self.states[client]
        put = {name: held for name, held in change.put.items() if state.get(name) != held}
        gone = change.gone & state.keys()
        if changed != len(put) + len(gone):
            raise Wrong(f"{changed} entries were changed, {len(put) + len(gone)} should have been")
        self.newest = max(self.newest, generation)
        if changed:
            self.keep(client, generation, Change(put, gone))

    def keep(self, client: str, generation: int, change: Change) -> None:
        """Keep what a generation changed of a client's entries."""
        if generation in self.changes:
            raise Wrong(f"generation {generation} was told of two writes")
        self.changes[generation] = change
        state = self.states[client]
        for name in change.gone:
            del state[name]
        state |= change.put


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, help=f"how long calls are made (default {SECONDS:g})")
    arguments.add_argument("--kills", type=int, help=f"how often to kill (default {KILLS})")
    arguments.add_argument("--seed", type=int, default=0, help="what is written, and when it is killed (default 0)")
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} s and {QUICK_KILLS} kills")
    given = arguments.parse_args()
    seconds = given.seconds or (QUICK_SECONDS if given.quick else SECONDS)
    kills = given.kills or (QUICK_KILLS if given.quick else KILLS)

    start = time.perf_counter()
    log, wrong, compared = Log(), "", 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            make_gallery(work)
            asyncio.run(run(work, log, seconds=seconds, kills=kills, seed=given.seed))
            check_disk(work, log)
            compared = compare(log)
            check_enough(log, compared)
        except Wrong as error:
            wrong = str(error)
            print(f"{wrong} (seed {given.seed})", file=sys.stderr)
    report = {
        "name": "consistency",
        "holds": not wrong,
        "quick": given.quick,
        "seed": given.seed,
        "seconds_of_calls": seconds,
        "searches_equal_to_brute_force": compared,
        "generations": log.newest,
        **{name: log.counts[name] for name in ("kills", "upsert", "update", "delete", "import", "snapshot")},
        "cut_off_and_in": log.counts["in"],
        "cut_off_and_out": log.counts["out"],
        "entries": sum(map(len, log.states.values())),
        "seconds": round(time.perf_counter() - start, 1),
        "wrong": wrong,
        "versions": {
            **{name: version(name) for name in ("reidserve", "numpy", "grpcio")},
            "sqlite": sqlite3.sqlite_version,
        },
    }
    print(json.dumps(report))
    return 0 if not wrong else 1


def make_gallery(work: Path) -> None:
    (work / "network.onnx").write_bytes(parser.parse_model(NETWORK).SerializeToString())
    neutral = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), colour="rgb")
    adopt(
        work / "network.onnx",
        work / "model",
        Feeding(height=64, width=32, resize="bilinear", preprocessing=neutral),
    )
    embedder = open_embedder(work / "model")
    origin = Origin(embedder.contract.identity, embedder.engine, DIM)
    create_store(work / "shop.gallery", origin).close()


async def run(work: Path, log: Log, *, seconds: float, kills: int, seed: int) -> None:
    """Let the clients work in `kills` + 1 lives of the server, of which each but the last ends with SIGKILL."""
    rng = np.random.default_rng([seed, 1])
    clients = [Client(f"w{number}", log, np.random.default_rng([seed, 2, number])) for number in range(WRITERS)]
    importer = Client("i", log, np.random.default_rng([seed, 3]))
    searchers = [Client(f"s{number}", log, np.random.default_rng([seed, 4, number])) for number in range(SEARCHERS)]
    copier = Client("c", log, np.random.default_rng([seed, 5]))
    lengths = rng.dirichlet(np.full(kills + 1, 4.0)) * seconds
    deleting = asyncio.Lock()
    for life, length in enumerate(lengths.tolist()):
        with serving(work) as (process, target):
            async with grpc.aio.insecure_channel(target) as channel:
                stubs = SearchServiceStub(channel), GalleryServiceStub(channel)
                await check_after_start(work, log, stubs[1])
                tasks = [
                    *(asyncio.create_task(client.write(stubs, deleting)) for client in clients),
                    asyncio.create_task(importer.import_(stubs[1])),
                    *(asyncio.create_task(client.search(stubs[0])) for client in searchers),
                    asyncio.create_task(copier.copy(stubs[1])),
                ]
                await asyncio.wait(tasks, timeout=length, return_when=asyncio.FIRST_COMPLETED)
                early = [task for task in tasks if task.done()]
                if life < kills:
                    process.kill()
                    log.counts["kills"] += 1
                else:
                    for task in tasks:
                        task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            check_ends(results, early=bool(early))
            if life == kills:
                process.terminate()
            code = await asyncio.to_thread(process.wait, READY_SECONDS)
            if code != (0 if life == kills else -9):
                raise Wrong(f"the server ended with {code}")


def check_ends(results: Sequence[object], *, early: bool) -> None:
    """See that every client ended because its server did, or because it was told to."""
    for error in results:
        if isinstance(error, asyncio.CancelledError):
            continue
        if isinstance(error, grpc.aio.AioRpcError) and not early and is_gone(error):
            continue
        raise Wrong(f"a call failed: {error!r}") from (error if isinstance(error, BaseException) else None)


def is_gone(error: grpc.aio.AioRpcError) -> bool:
    """Whether a call failed because its server is not there any more; the second is grpcio's own word for a message
    of a stream that it could not send.
    """
    return error.code() is grpc.StatusCode.UNAVAILABLE or error.details() == "Internal error from Core"


@contextlib.contextmanager
def serving(work: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server of the gallery and where it listens; it is gone when the block ends, however that is."""
    with subprocess.Popen(
        [
            Path(sys.executable).with_name("reid-serve"),
            *("--listen", "127.0.0.1:0", "--json", "--log-level", "warning"),
            *("--model", work / "model", "--gallery", work / "shop.gallery", "--snapshots", work / "snapshots"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = "" if process.stdout is None else process.stdout.readline()
            if not line:
                raise Wrong(f"the server ended with {process.wait(10)} before it was ready")
            yield process, json.loads(line)["listening"]
        finally:
            process.kill()


class Client:
    """One client: its entries are its own, so that it knows what they should be."""

    def __init__(self, name: str, log: Log, rng: np.random.Generator) -> None:
        self._name = name
        self._log = log
        self._rng = rng
        self._sequence = 0
        if name[0] in "wi":
            log.states[name] = {}

    async def write(self, stubs: "Stubs", deleting: asyncio.Lock) -> None:
        """Upsert, update and delete until the server is gone."""
        search, gallery = stubs
        while True:
            drawn = self._rng.random()
            state = self._log.states[self._name]
            if drawn < 0.6 or not state:
                await self._upsert(gallery)
            elif drawn < 0.75:
                await self._update(gallery)
            else:
                # One at a time, so that it is known which of them a generation is that only removed something.
                async with deleting:
                    await self._delete(gallery, by_filter=drawn > 0.9)
            if self._rng.random() < 0.3:
                await self._search(search, at_least=self._log.newest)

    async def import_(self, gallery: "GalleryServiceAsyncStub") -> None:
        """Import without an end, from behind the last number that was acknowledged."""
        sent: dict[int, tuple[str, Held]] = {}
        acknowledged = self._sequence

        async def requests() -> AsyncIterator[reid_pb2.ImportEntriesRequest]:
            for sequence in range(acknowledged + 1, 2**62):
                # A function of the number, so that what is sent again is what was sent before.
                name, held = f"i{sequence * 7 % IDS}", (-sequence, sequence * 31 % VECTORS)
                sent[sequence] = name, held
                self._log.pending[f"i{sequence}"] = Change({name: held})
                yield reid_pb2.ImportEntriesRequest(sequence=sequence, entry=entry_message(name, held))
                if sequence % 16 == 0:
                    await asyncio.sleep(0.02)

        async for piece in gallery.ImportEntries(requests()):
            numbers = range(self._sequence + 1, piece.acknowledged_sequence + 1)
            change = Change(dict(sent.pop(number) for number in numbers))
            for number in numbers:
                del self._log.pending[f"i{number}"]
            if piece.faults or not numbers:
                raise Wrong(f"a piece of the import came back as {piece}")
            self._sequence = piece.acknowledged_sequence
            self._log.acknowledge(self._name, piece.generation, piece.written, change)
            self._log.counts["import"] += 1

    async def search(self, search: "SearchServiceAsyncStub") -> None:
        """Search until the server is gone."""
        while True:
            await self._search(search, at_least=0)

    async def copy(self, gallery: "GalleryServiceAsyncStub") -> None:
        """Make snapshots until the server is gone."""
        while True:
            await asyncio.sleep(float(self._rng.random()))
            name = f"copy-{self._log.next_mark()}"
            said = await gallery.CreateSnapshot(reid_pb2.CreateSnapshotRequest(name=name))
            self._log.copies.append((said.generation, name))
            self._log.counts["snapshot"] += 1

    async def _upsert(self, gallery: "GalleryServiceAsyncStub") -> None:
        names = self._rng.choice(IDS, int(np.exp(self._rng.random() * np.log(60))), replace=False)
        put = {f"{self._name}-{name}": (self._log.next_mark(), int(self._rng.integers(VECTORS))) for name in names}
        request = reid_pb2.BatchUpsertEntriesRequest(
            entries=[entry_message(name, held) for name, held in put.items()], request_id=str(self._log.mark)
        )
        with self._asking("upsert", Change(put)) as change:
            said = await gallery.BatchUpsertEntries(request)
            self._log.acknowledge(self._name, said.generation, said.written, change)
            if self._rng.random() < 0.2 and await gallery.BatchUpsertEntries(request) != said:
                raise Wrong("a request that was sent again got another answer")

    async def _update(self, gallery: "GalleryServiceAsyncStub") -> None:
        state = self._log.states[self._name]
        name = str(self._rng.choice(sorted(state)))
        held = self._log.next_mark(), state[name][1]
        message = entry_message(name, held)
        request = reid_pb2.UpdateEntryRequest(
            entry=reid_pb2.Entry(entry_id=name, camid=message.camid, attributes=message.attributes)
        )
        request.update_mask.paths.extend(["camid", "attributes.mark"])
        with self._asking("update", Change({name: held})) as change:
            said = await gallery.UpdateEntry(request)
            self._log.acknowledge(self._name, said.generation, 1, change)

    async def _delete(self, gallery: "GalleryServiceAsyncStub", *, by_filter: bool) -> None:
        state = self._log.states[self._name]
        if by_filter:
            camera = int(self._rng.integers(CAMERAS))
            names = [name for name, (mark, _) in state.items() if mark % CAMERAS == camera]
            request = reid_pb2.BatchDeleteEntriesRequest(
                filter=reid_pb2.Filter(
                    ids=reid_pb2.Choice(any_of=sorted(state)), camids=reid_pb2.Choice(any_of=[f"c{camera}"])
                )
            )
        else:
            names = [f"{self._name}-{name}" for name in self._rng.choice(IDS, 20, replace=False)]
            request = reid_pb2.BatchDeleteEntriesRequest(entry_ids=names)
        with self._asking("delete", Change(gone=frozenset(names))) as change:
            said = await gallery.BatchDeleteEntries(request)
            self._log.acknowledge(self._name, said.generation, said.deleted, change)

    @contextlib.contextmanager
    def _asking(self, kind: str, change: Change) -> Iterator[Change]:
        self._log.pending[self._name] = change
        yield change
        # Where the call failed it stays: nobody knows whether it is in.
        del self._log.pending[self._name]
        self._log.counts[kind] += 1

    async def _search(self, search: "SearchServiceAsyncStub", *, at_least: int) -> None:
        query, top_k = int(self._rng.integers(VECTORS)), int(self._rng.integers(1, 21))
        camera = int(self._rng.integers(CAMERAS)) if self._rng.random() < 0.4 else None
        request = reid_pb2.SearchRequest(embedding=query_of(query).tobytes(), top_k=top_k)
        if camera is not None:
            request.filter.camids.any_of.append(f"c{camera}")
        said = await search.Search(request)
        if said.generation < at_least:
            raise Wrong(f"generation {at_least} was acknowledged, and {said.generation} searched after it")
        self._log.newest = max(self._log.newest, said.generation)
        ids, scores = zip(*((hit.entry_id, hit.score) for hit in said.hits), strict=True) if said.hits else ((), ())
        self._log.answers.append(Answer(said.generation, query, top_k, camera, ids, scores))


async def check_after_start(work: Path, log: Log, gallery: "GalleryServiceAsyncStub") -> None:
    """See what a server that was killed has kept, and settle what was under way."""
    now = (await gallery.GetGallery(reid_pb2.GetGalleryRequest())).gallery
    if now.generation < log.newest:
        raise Wrong(f"generation {log.newest} was told, and after a kill it is {now.generation}")
    settle(work / "shop.gallery" / "gallery.db", log, now.generation)
    log.newest = now.generation
    expected = {name: held for state in log.states.values() for name, held in state.items()}
    found: dict[str, Held] = {}
    request = reid_pb2.ListEntriesRequest(generation=now.generation)
    while True:
        page = await gallery.ListEntries(request)
        found |= {one.entry_id: held_of(one.attributes) for one in page.entries}
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if found != expected:
        lost = {name for name in expected if found.get(name) != expected[name]}
        raise Wrong(
            f"after a kill {len(lost)} acknowledged entries are lost, {len(found)} are there: {sorted(lost)[:5]}"
        )
    if now.entries != len(expected) or now.damaged:
        raise Wrong(f"after a kill the gallery says {now.entries} entries of {len(expected)}, {now.damaged} damaged")


def settle(database: Path, log: Log, generation: int) -> None:
    """Find out which writes that were never answered are in, from the generations that nobody was told."""
    unknown = [number for number in range(1, generation + 1) if number not in log.changes]
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        for number in unknown:
            rows = connection.execute(
                "SELECT id, attributes FROM entry WHERE generation = ? ORDER BY row", (number,)
            ).fetchall()
            put = {name: (said["mark"], said["vector"]) for name, text in rows for said in [json.loads(text)]}
            client, change = who_asked(log, put)
            if (put or change.gone) != (change.put or change.gone):
                raise Wrong(f"generation {number} has only a part of what was asked: {put} of {change}")
            log.keep(client, number, Change(change.put, change.gone & log.states[client].keys()))
            log.counts["in"] += 1
    log.counts["out"] += len({name[0] if name[0] == "i" else name for name in log.pending})
    log.pending.clear()


def who_asked(log: Log, put: Mapping[str, Held]) -> tuple[str, Change]:
    """The change that was under way and wrote this, or only removed something; it is under way no more."""
    if put and next(iter(put)).startswith("i"):
        numbers = sorted(-mark for mark, _ in put.values())
        asked = [log.pending.get(f"i{number}") for number in numbers]
        if None in asked:
            raise Wrong(f"the import holds {numbers[:3]}..., which nobody had sent")
        return "i", Change(put)
    for client, change in log.pending.items():
        if not client.startswith("i") and (change.put.items() >= put.items() if put else bool(change.gone)):
            del log.pending[client]
            return client, change
    raise Wrong(f"a generation holds what nobody had under way: {put}")


def compare(log: Log) -> int:
    """Hold each answer against brute force at its generation; how many there were."""
    replay = Replay()
    answers = sorted(log.answers, key=lambda answer: answer.generation)
    for answer in answers:
        while replay.generation < answer.generation:
            change = log.changes.get(replay.generation + 1)
            if change is None:
                raise Wrong(f"a search was of generation {answer.generation}, of which nobody was told")
            replay.apply(change)
        expected = replay.search(answer)
        if expected != (answer.ids, answer.scores):
            raise Wrong(f"{answer} should have been {expected}")
    return len(answers)


class Replay:
    """The gallery as the log says that it was, one generation after the other; searched by brute force."""

    def __init__(self) -> None:
        self.generation = 0
        self._slots: dict[str, int] = {}
        self._names: list[str] = []
        self._written = 0
        room = (WRITERS + 1) * IDS
        self._vectors: Embeddings = np.zeros((room, DIM), np.float32)
        self._cameras = np.zeros(room, np.int64)
        self._order = np.zeros(room, np.int64)  # of writing
        self._live = np.zeros(room, np.bool_)

    def apply(self, change: Change) -> None:
        """Go on to the next generation."""
        for name in change.gone:
            self._live[self._slots[name]] = False
        for name, (mark, vector) in change.put.items():
            slot = self._slots.setdefault(name, len(self._slots))
            if slot == len(self._names):
                self._names.append(name)
            self._written += 1
            self._vectors[slot], self._cameras[slot] = vector_of(vector), mark % CAMERAS
            self._order[slot], self._live[slot] = self._written, True
        self.generation += 1

    def search(self, answer: Answer) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The best ids and their scores: those that a product puts near the best are settled by vecdot."""
        query = query_of(answer.query)
        may = self._live if answer.camera is None else self._live & (self._cameras == answer.camera)
        slots = np.flatnonzero(may)
        count = min(answer.top_k, len(slots))
        if not count:
            return (), ()
        rough: NDArray[np.float32] = self._vectors[slots] @ query
        near = slots[rough >= np.partition(rough, -count)[-count] - ROUNDING]
        scores = np.vecdot(self._vectors[near], query)
        best = np.lexsort((self._order[near], -scores))[:count]
        return tuple(self._names[slot] for slot in near[best]), tuple(scores[best].tolist())


def check_disk(work: Path, log: Log) -> None:
    """Read the gallery and its snapshots from the disk: every one must be what was acknowledged up to it."""
    folder = work / "shop.gallery"
    with contextlib.closing(open_store(folder)) as store:
        settle(folder / "gallery.db", log, store.generation())
    check_contents(folder, {name: held for state in log.states.values() for name, held in state.items()})
    held: dict[str, Held] = {}
    done = 0
    for generation, name in sorted(log.copies):
        for change in (log.changes[number] for number in range(done + 1, generation + 1)):
            held = {entry: one for entry, one in held.items() if entry not in change.gone} | dict(change.put)
        done = generation
        check_contents(work / "snapshots" / name, held)


def check_contents(folder: Path, expected: Mapping[str, Held]) -> None:
    found = verify.verify_gallery(folder)
    if not found.clean or found.entries != len(expected):
        raise Wrong(f"{folder.name} should have {len(expected)} entries, on the disk is {found}")
    with contextlib.closing(open_store(folder)) as store, contextlib.closing(store.scan()) as scan:
        for one in scan:
            if isinstance(one, Damage):
                raise Wrong(f"{folder.name}: {one.id} is damaged: {one.fault}")
            held = expected.get(one.entry.id, (0, 0))
            if one.entry != entry_of(one.entry.id, held) or one.vector.tobytes() != vector_of(held[1]).tobytes():
                raise Wrong(f"{folder.name}: {one.entry.id} is not what was acknowledged: {one.entry}")


def check_enough(log: Log, compared: int) -> None:
    """See that the run was no idle one."""
    idle = [kind for kind in ("upsert", "update", "delete", "import", "snapshot") if not log.counts[kind]]
    if idle or compared < 100:
        raise Wrong(f"{compared} searches were compared, and never was there: {idle}")


VECTOR_ROWS: dict[int, Embeddings] = {}


def vectors(seed: int) -> Embeddings:
    if seed not in VECTOR_ROWS:
        rows = np.random.default_rng(seed).standard_normal((VECTORS, DIM)).astype(np.float32)
        VECTOR_ROWS[seed] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return VECTOR_ROWS[seed]


def vector_of(number: int) -> Embedding:
    row: Embedding = vectors(11)[number]
    return row


def query_of(number: int) -> Embedding:
    row: Embedding = vectors(12)[number]
    return row


def entry_of(name: str, held: Held) -> Entry:
    """An entry is a function of what it holds."""
    return Entry(name, camid=f"c{held[0] % CAMERAS}", attributes={"mark": held[0], "vector": held[1]})


def entry_message(name: str, held: Held) -> reid_pb2.NewEntry:
    entry = entry_of(name, held)
    return reid_pb2.NewEntry(
        entry_id=name,
        embedding=vector_of(held[1]).tobytes(),
        camid=entry.camid,
        attributes={name: reid_pb2.Value(integer=value) for name, value in (("mark", held[0]), ("vector", held[1]))},
    )


def held_of(attributes: Mapping[str, reid_pb2.Value]) -> Held:
    return attributes["mark"].integer, attributes["vector"].integer


if __name__ == "__main__":
    sys.exit(main())
