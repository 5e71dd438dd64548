"""A gallery's writer killed with SIGKILL at random moments, again and again, on one gallery.

    python benchmarks/crash.py [--kills N] [--seed S] [--quick]

A child process opens the gallery for writing and upserts, updates, deletes and compacts at random. It announces each
call on a pipe before it makes it, and acknowledges it after it returned. It is killed while it opens, writes, compacts
or closes. After each kill every acknowledged write must be present bit for bit and every acknowledged delete absent,
the one call that was not acknowledged must be in as a whole or not at all, and count, scan and self-hits must agree:
in a process that opens the gallery anew, in a second reader beside it, and in one that had it open all the while.
Where a reader had it open, such a call may be found once the last reader has gone, up to the next opening to write.

The seed fixes what is written and when the child is killed, as far as clocks repeat themselves. A killed process
keeps what the kernel has of its files: a power cut is something else, and is not tried here.
"""

import argparse
import contextlib
import hashlib
import json
import os
import select
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from reidserve.embed import Embedding
from reidserve.index import Entry, Filter, FolderSnapshot, Gallery, Origin, Record, Snapshot, open_writer
from reidserve.index.gallery import open_gallery
from reidserve.index.storage.rows import Damage
from reidserve.index.storage.store import create_store, open_store

DIM = 64
IDS = 400
CAMERAS = 5
LARGEST_BATCH = 60
KILLS, QUICK_KILLS = 300, 15
LONGEST_LIFE = 0.12  # seconds that a child is given when it is killed by the clock
PATIENCE = 60.0  # seconds after which a process is held to hang

Contents = Mapping[int, tuple[int, int]]
"""What a gallery should hold: an entry's number -> which of its vectors, and which of its facts."""


@dataclass(frozen=True)
class Call:
    """One write: what becomes of which entries.

    Attributes:
        kind: upsert, update, delete, "delete where" or compact.
        entries: number, vector and facts of those that are written.
        gone: numbers of those that are deleted.
        camera: whose entries are deleted, in "delete where".
    """

    kind: str
    entries: tuple[tuple[int, int, int], ...] = ()
    gone: tuple[int, ...] = ()
    camera: str = ""

    def applied(self, contents: Contents) -> Contents:
        """The contents after it."""
        after = dict(contents) | {number: (vector, facts) for number, vector, facts in self.entries}
        for number in self.gone:
            after.pop(number, None)
        if self.kind == "delete where":
            after = {number: held for number, held in after.items() if entry_of(number, held[1]).camid != self.camera}
        return after


@dataclass
class Tally:
    """What a run has seen.

    Attributes:
        announced: calls that were announced.
        acknowledged: calls that returned.
        compactions: of those, how many were compactions.
        idle: kills while no call was under way (opening and closing).
        inside, outside: kills within a call that turned out to be in the gallery, or not.
        unchanged: kills within a call that would have changed nothing.
        late: calls that were found only when nobody had the gallery open any more.
    """

    announced: int = 0
    acknowledged: int = 0
    compactions: int = 0
    idle: int = 0
    inside: int = 0
    outside: int = 0
    unchanged: int = 0
    late: int = 0


@dataclass(frozen=True)
class Known:
    """What is known of the gallery between two kills.

    Attributes:
        generation: the last that was seen.
        contents: what it holds.
        seen: what a reader's snapshot of it is.
        undecided: what the next generation holds if a call that was cut off while a reader watched turns up.
    """

    generation: int = 0
    contents: Contents = field(default_factory=dict)
    seen: Mapping[str, Any] = field(default_factory=dict)
    undecided: Contents | None = None


class Wrong(Exception):  # noqa: N818
    """The gallery is not what it should be."""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, help=f"how often to kill (default {KILLS})")
    arguments.add_argument("--seed", type=int, default=0, help="what is written, and when it is killed (default 0)")
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills")
    given = arguments.parse_args()
    kills = given.kills or (QUICK_KILLS if given.quick else KILLS)

    start = time.perf_counter()
    tally, known, wrong, done = Tally(), Known(), "", 0
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "crash.gallery"
        in_a_child(lambda: create_store(folder, Origin("c" * 64, "fp32/none", DIM)).close())
        try:
            with contextlib.ExitStack() as watched:
                watcher: Watcher | None = watched.enter_context(watching(folder))
                for done in range(1, kills + 1):
                    rng = np.random.default_rng([given.seed, done])
                    known = one_kill(folder, rng, known, tally, is_watched=watcher is not None)
                    if watcher is not None and watcher.state() != known.seen:
                        raise Wrong("a reader that had the gallery open all the while sees something else")
                    if done % 10 == 0:
                        # Without anybody who has the file open, the next to open it recovers the write-ahead log.
                        watched.close()
                        watcher = None
                    if done % 10 == 5:
                        watcher = watched.enter_context(watching(folder))
        except Wrong as error:
            wrong = f"kill {done}: {error}"
            print(f"{wrong} (seed {given.seed})", file=sys.stderr)
    holds = not wrong and done == kills
    report = {
        "name": "crash",
        "holds": holds,
        "seed": given.seed,
        "kills": done,
        **vars(tally),
        "generation": known.generation,
        "entries": len(known.contents),
        "seconds": round(time.perf_counter() - start, 1),
        "wrong": wrong,
        "versions": {**{name: version(name) for name in ("reidserve", "numpy")}, "sqlite": sqlite3.sqlite_version},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def one_kill(folder: Path, rng: np.random.Generator, known: Known, tally: Tally, *, is_watched: bool) -> Known:
    """Let a child write until it is killed, and see what is there."""
    generation, contents, undecided = known.generation, known.contents, known.undecided
    pending: Call | None = None
    for said in lines_of_a_killed(folder, rng, known):
        match said:
            case {"failed": reason}:
                raise Wrong(f"the writer failed: {reason}")
            case {"opened": opened}:
                if undecided is not None and opened == generation + 1:
                    generation, contents = opened, undecided
                    tally.late += 1
                undecided = None
                if opened != generation:
                    raise Wrong(f"the writer opened generation {opened}, expected {generation}")
            case {"kind": kind, "entries": entries, "gone": gone, "camera": camera}:
                pending = Call(kind, tuple(map(tuple, entries)), tuple(gone), camera)
                tally.announced += 1
            case {"generation": acknowledged} if pending is not None:
                after = pending.applied(contents)
                if acknowledged != generation + (after != contents):
                    raise Wrong(f"generation {acknowledged} after {pending.kind} at {generation}")
                generation, contents = acknowledged, after
                tally.acknowledged += 1
                tally.compactions += pending.kind == "compact"
                pending = None
    possible = {generation: contents}
    if undecided is not None:
        possible[generation + 1] = undecided
    elif pending is not None and (after := pending.applied(contents)) != contents:
        possible[generation + 1] = after
    seen = in_a_child(lambda: state_anew(folder, possible))
    is_in = seen["generation"] != generation
    count_outcome(tally, cut_off=pending is not None, open_question=len(possible) > 1, is_in=is_in)
    still_undecided = possible.get(seen["generation"] + 1) if is_watched else None
    return Known(seen["generation"], possible[seen["generation"]], seen, still_undecided)


def count_outcome(tally: Tally, *, cut_off: bool, open_question: bool, is_in: bool) -> None:
    if not cut_off:
        tally.idle += 1
        tally.late += is_in
    elif not open_question:
        tally.unchanged += 1
    else:
        tally.inside += is_in
        tally.outside += not is_in


def lines_of_a_killed(folder: Path, rng: np.random.Generator, known: Known) -> Iterator[dict[str, Any]]:
    """What a writing child says until it is killed: after some time, or shortly after it announced its n-th call."""
    by_clock = rng.random() < 0.4
    life = LONGEST_LIFE * rng.random()
    calls = int(rng.integers(1, 12))
    delay = float(rng.choice([0.0, 0.0005, 0.001, 0.002, 0.004, 0.008]) * (0.5 + rng.random()))
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        write_for_ever(folder, rng, known, writing)
    os.close(writing)
    deadline = started + (life if by_clock else PATIENCE)
    text, announced = b"", 0
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reading], [], [], left)[0]:
            break
        said = os.read(reading, 2**16)
        if not said:  # it died by itself
            break
        text += said
        announced += said.count(b'{"kind"')
        if not by_clock and announced >= calls:
            deadline, announced = min(deadline, time.monotonic() + delay), -(2**31)
    os.kill(child, signal.SIGKILL)
    while said := os.read(reading, 2**16):
        text += said
    os.close(reading)
    _, status = os.waitpid(child, 0)
    # A line without an end was not finished: what it would have said was not said.
    yield from map(json.loads, text.split(b"\n")[:-1])
    if not os.WIFSIGNALED(status):
        raise Wrong(f"the writer ended by itself, status {status}")


def write_for_ever(folder: Path, rng: np.random.Generator, known: Known, out: int) -> NoReturn:
    """The child: opens, writes, closes and opens again until somebody kills it."""

    def say(**said: object) -> None:
        os.write(out, json.dumps(said).encode() + b"\n")

    try:
        contents, undecided = known.contents, known.undecided
        while True:
            with contextlib.closing(open_gallery(folder, write=True)) as gallery:
                say(opened=gallery.snapshot.generation)
                if undecided is not None and gallery.snapshot.generation > known.generation:
                    contents = undecided
                undecided = None
                for _ in range(int(rng.geometric(0.1))):
                    call = draw_call(rng, contents)
                    say(kind=call.kind, entries=call.entries, gone=call.gone, camera=call.camera)
                    say(generation=make_call(gallery, call))
                    contents = call.applied(contents)
            if rng.random() < 0.5:
                say(kind="compact", entries=(), gone=(), camera="")
                with open_writer(folder) as store:
                    store.compact()
                    say(generation=store.generation())
    except BaseException as error:  # noqa: BLE001
        say(failed=repr(error))
    finally:
        os._exit(1)


def draw_call(rng: np.random.Generator, contents: Contents) -> Call:
    count = int(np.exp(rng.random() * np.log(LARGEST_BATCH)))
    chosen = rng.choice(IDS, count, replace=False).tolist()
    held = [number for number in chosen if number in contents]
    drawn = rng.random()
    if drawn < 0.6 or not held:
        entries = []
        for number in chosen:
            vector, facts = contents.get(number, (0, 0))
            entries.append((number, vector + int(rng.integers(2)), facts + int(rng.integers(2))))
        return Call("upsert", tuple(entries))
    if drawn < 0.75:
        return Call("update", tuple((number, contents[number][0], contents[number][1] + 1) for number in held))
    if drawn < 0.97:
        return Call("delete", gone=tuple(chosen))
    return Call("delete where", camera=f"c{rng.integers(CAMERAS)}")


def make_call(gallery: Gallery, call: Call) -> int:
    if call.kind == "upsert":
        return gallery.upsert([record_of(number, vector, facts) for number, vector, facts in call.entries]).generation
    if call.kind == "update":
        return gallery.update([entry_of(number, facts) for number, _, facts in call.entries]).generation
    if call.kind == "delete":
        return gallery.delete([f"e{number}" for number in call.gone]).generation
    return gallery.delete(where=Filter(camids=frozenset([call.camera]))).generation


def record_of(number: int, vector: int, facts: int) -> Record:
    drawn = np.random.default_rng([number, vector]).standard_normal(DIM)
    unit = (drawn / np.linalg.norm(drawn)).astype(np.float32)
    return Record(entry_of(number, facts), hashlib.sha256(f"{number} {vector}".encode()).digest(), unit)


def entry_of(number: int, facts: int) -> Entry:
    return Entry(
        f"e{number}",
        pid=f"{number // 4:04}" if facts % 3 else None,
        camid=f"c{(number + facts) % CAMERAS}",
        timestamp=facts,
        source=f"/photographs/{number}.jpg",
        attributes={"colour": "red", "speed": facts / 7, "seen": bool(facts % 2)} if facts % 2 else {},
    )


def state_anew(folder: Path, possible: Mapping[int, Contents]) -> dict[str, Any]:
    """Open a gallery that a killed process left, and see that it is one of those that it may be, in every respect."""
    with contextlib.closing(open_gallery(folder)) as gallery, contextlib.closing(open_gallery(folder)) as second:
        seen = state(gallery.snapshot)
        if state(second.snapshot) != seen:
            raise Wrong("a second reader sees something else")
        contents = possible.get(gallery.snapshot.generation)
        if contents is None:
            raise Wrong(f"generation {gallery.snapshot.generation}, expected one of {sorted(possible)}")
        check_store(folder, contents)
        check_self_hits(gallery.snapshot, contents)
    return seen


def check_store(folder: Path, contents: Contents) -> None:
    with contextlib.closing(open_store(folder)) as store:
        if faults := store.faults():
            raise Wrong(f"the store has faults: {faults}")
        expected = {f"e{number}": record_of(number, *held) for number, held in contents.items()}
        scanned = 0
        for found in store.scan():
            scanned += 1
            if isinstance(found, Damage):
                raise Wrong(f"{found.id} is damaged: {found.fault}")
            wanted = expected.get(found.entry.id)
            if wanted is None:
                raise Wrong(f"{found.entry.id} should not be there")
            if (found.entry, found.content_sha256, found.vector.tobytes()) != (
                *(wanted.entry, wanted.content_sha256),
                wanted.vector.tobytes(),
            ):
                raise Wrong(f"{found.entry.id} is not what was acknowledged")
        if not scanned == store.count() == len(contents):
            raise Wrong(f"{len(contents)} entries were acknowledged, scan {scanned}, count {store.count()}")


def check_self_hits(snapshot: Snapshot, contents: Contents) -> None:
    if len(snapshot) != len(contents) or snapshot.damaged:
        raise Wrong(f"{len(contents)} entries were acknowledged, {len(snapshot)} are searched")
    if not contents:
        return
    queries = np.stack([record_of(number, *held).vector for number, held in contents.items()])
    hits = snapshot.hits(snapshot.search(queries, top_k=1))
    for number, query, (hit,) in zip(contents, queries, hits, strict=True):
        if hit.entry.id != f"e{number}" or hit.score != float(np.vecdot(query, query)):
            raise Wrong(f"e{number} does not find itself, but {hit}")


def state(snapshot: FolderSnapshot) -> dict[str, Any]:
    """What a snapshot holds, in few words."""
    digest = hashlib.sha256()
    for block in snapshot.blocks:
        for place in np.flatnonzero(block.live).tolist():
            vector: Embedding = block.vectors[place]
            digest.update(repr((int(block.rows[place]), block.entries[place])).encode() + vector.tobytes())
    return {"generation": snapshot.generation, "entries": len(snapshot), "sha256": digest.hexdigest()}


def in_a_child(work: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What `work` returns, done in a process of its own: SQLite's locks do not live through a fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"answer": work()}
        except Wrong as error:
            answer = {"wrong": str(error)}
        except BaseException as error:  # noqa: BLE001
            answer = {"wrong": f"a reader failed: {error!r}"}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = json.loads(stream.read() or b'{"wrong": "a reader died"}')
    os.waitpid(child, 0)
    if "wrong" in said:
        raise Wrong(said["wrong"])
    return said["answer"]


@dataclass(frozen=True)
class Watcher:
    """A process that has the gallery open, and catches up with it all the time.

    Attributes:
        asking: where it is asked.
        answering: where it answers.
    """

    asking: int
    answering: int

    def state(self) -> dict[str, Any]:
        """What it sees now."""
        os.write(self.asking, b"?")
        if not select.select([self.answering], [], [], PATIENCE)[0]:
            raise Wrong("the watching reader hangs")
        said = json.loads(os.read(self.answering, 2**16) or b'{"failed": "it died"}')
        if "failed" in said:
            raise Wrong(f"the watching reader failed: {said['failed']}")
        return cast(dict[str, Any], said)


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Watcher]:
    asked, asking = os.pipe()
    answering, answered = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(asking)
        watch(folder, asked, answered)
    os.close(asked)
    os.close(answered)
    try:
        yield Watcher(asking, answering)
    finally:
        os.close(asking)
        os.waitpid(child, 0)
        os.close(answering)


def watch(folder: Path, asked: int, answered: int) -> NoReturn:
    try:
        with contextlib.closing(open_gallery(folder)) as gallery:
            while True:
                gallery.refresh()
                if select.select([asked], [], [], 0.005)[0]:
                    if not os.read(asked, 1):
                        break
                    gallery.refresh()
                    os.write(answered, json.dumps(state(gallery.snapshot)).encode())
    except BaseException as error:  # noqa: BLE001
        os.write(answered, json.dumps({"failed": repr(error)}).encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
