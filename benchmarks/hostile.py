"""A server among callers who mean it ill: it answers each in words, loses no memory, and serves on.

    python benchmarks/hostile.py [--quick] [--calls N] [--seed N]

A real `reid-serve` with a gallery to search and one to write gets calls that are wrong in every way that is thought of
here: mutated images and bombs, random, mutated and swollen messages to every method, filters, tokens, numbers and
embeddings that cannot be, texts that are none, too much metadata, streams that stop half way or are never read,
callers who go away, and bytes that are no gRPC. What must hold: none ends as UNKNOWN or INTERNAL; every refusal of ours
says its reason; a right search is answered rightly all the while and afterwards; the server's memory does not grow
after a warm-up; it lives, and ends with 0. Call number n of a seed is always the same: what is wrong is reported by
number.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from onnx import numpy_helper, parser
from PIL import Image

from reidserve.embed import Embedder, Preprocessing, open_embedder
from reidserve.export.convert import Feeding, adopt
from reidserve.index import Entry, Origin, Record, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2

HEIGHT, WIDTH, DIM = 64, 32, 24
ENTRIES = 20_000  # a whole ranking is more than a window of bytes: who does not read it holds it up
WORKERS, CHANNELS = 16, 4
ROUNDS = 20
SETTLE_SECONDS = 0.1
WARM = 5  # rounds until caches, pools and arenas are as large as they get
GROWTH_MIB = 48.0  # two large images may be under way, or not
CALL_SECONDS = 10.0
PATIENCE_SECONDS = 0.05  # that a caller waits before it goes away

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 3, 64, 32] pixels) => (float[N, 24] feature)
{
    grid = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixels)
    flat = Flatten (grid)
    feature = MatMul (flat, w)
}
"""

# What is freed is given back at once, so that what the server has is what it keeps: left to itself, the allocator holds
# on to a few hundred MiB of what large images took, now more and now less.
GIVING_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

# A window that does not grow, so that a stream stands still when nobody reads it.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]

# gRPC itself ends calls so, in its own words; every other refusal is ours and has a reason.
WORDLESS = {"CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
NEVER = {"UNKNOWN", "INTERNAL", "DATA_LOSS", "ABORTED", "OUT_OF_RANGE"}

# The types of grpc know no calls of raw bytes, and those of messages no fields that are said as dictionaries.
Channel: TypeAlias = Any
StreamCall: TypeAlias = Any
Field: TypeAlias = Any

# A client that writes to a stream which the server is just ending loses the server's words for these of its own: such a
# call is made again.
OWN_WORDS = "Internal error from Core"
ENDED = "ENDED"

SERVICES = reid_pb2.DESCRIPTOR.services_by_name
METHODS = {
    f"{service.full_name}/{rpc.name}": (
        getattr(reid_pb2, rpc.input_type.name),
        "duplex" if rpc.client_streaming else "stream" if rpc.server_streaming else "unary",
    )
    for service in SERVICES.values()
    for rpc in service.methods
}
SEARCH, BATCH, EMBED, RANK = (f"reid.v1.SearchService/{name}" for name in ("Search", "BatchSearch", "Embed", "Rank"))
UPSERT, LIST, IMPORT = (
    f"reid.v1.GalleryService/{name}" for name in ("BatchUpsertEntries", "ListEntries", "ImportEntries")
)
RELOAD = "reid.v1.ModelService/Reload"


@dataclass(frozen=True)
class Attack:
    """A call that is wrong.

    Attributes:
        method: its full name.
        sent: messages; one, but of a stream.
        metadata: what it comes with.
        manner: "whole"; or "left" after a moment; or "unread"; or "open", whose stream is never ended.
        timeout: seconds.
        pause: seconds that a caller waits before it goes away.
    """

    method: str
    sent: Sequence[bytes]
    metadata: Sequence[tuple[str, str | bytes]] = ()
    manner: str = "whole"
    timeout: float = CALL_SECONDS
    pause: float = PATIENCE_SECONDS


@dataclass
class Outcome:
    """What came of all attacks: by kind and status, and what must not be."""

    codes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="a few seconds: 1,500 calls")
    arguments.add_argument("--calls", type=int, help="how many; 100,000 where it is not said")
    arguments.add_argument("--seed", type=int, default=8)
    arguments.add_argument("--only", type=int, nargs="+", help="these calls of the seed and no others")
    asked = arguments.parse_args()
    numbers = asked.only or range(asked.calls or (1_500 if asked.quick else 100_000))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        embedder = make_model(work)
        make_gallery(work / "kept.gallery", embedder, ENTRIES)
        make_gallery(work / "played.gallery", embedder, 50)
        with serving(work) as (process, target):
            truth = Truth(embedder, work)
            outcome, memory, right = asyncio.run(attack_all(target, process.pid, truth, numbers, asked.seed))
            alive = process.poll() is None
        ended = process.returncode
        log = (work / "log").read_text()
    # gRPC itself says "raised in core" of a caller who goes away while it is answered.
    log = "".join(line for line in log.splitlines(keepends=True) if "raised in core" not in line)
    faults = [log[found.start() :][:1500] for found in re.finditer("^.* ERROR ", log, re.MULTILINE)]
    # Rounds differ by what is still under way; what is lost shows in the least of them.
    before, after = min(memory[WARM : 2 * WARM]), min(memory[-WARM:])
    flat = after - before <= GROWTH_MIB
    holds = right and alive and ended == 0 and flat and not outcome.wrong and not faults
    report = {
        "name": "hostile",
        "holds": holds,
        "quick": asked.quick,
        "seed": asked.seed,
        "calls": sum(outcome.kinds.values()),
        "kinds": dict(outcome.kinds),
        "codes": dict(outcome.codes),
        "wrong": outcome.wrong[:20],
        "logged_faults": faults[:5],
        "right_searches_right": right,
        "alive": alive,
        "exit": ended,
        "memory_after_warm_up_MiB": round(before, 1),
        "memory_at_the_end_MiB": round(after, 1),
        "memory_most_MiB": round(max(memory), 1),
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio", "pillow")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def make_model(work: Path) -> Embedder:
    network = parser.parse_model(NETWORK)
    weights = np.random.default_rng(0).standard_normal((3 * 8 * 4, DIM)).astype(np.float32)
    network.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    (work / "network.onnx").write_bytes(network.SerializeToString())
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), colour="rgb")
    feeding = Feeding(height=HEIGHT, width=WIDTH, resize="bilinear", preprocessing=preprocessing)
    adopt(work / "network.onnx", work / "model", feeding)
    return open_embedder(work / "model")


def make_gallery(out: Path, embedder: Embedder, count: int) -> None:
    rows = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    store = create_store(out, Origin(embedder.contract.identity, embedder.engine, DIM))
    store.upsert(
        [
            Record(Entry(f"n{place}", pid=str(place % 97), camid=f"c{place % 5}"), place.to_bytes(32, "big"), row)
            for place, row in enumerate(rows)
        ]
    )
    store.close()


@contextmanager
def serving(work: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    binary = str(Path(sys.executable).parent / "reid-serve")
    served = [f"--{name}={work / folder}" for name, folder in (("model", "model"), ("snapshots", "snapshots"))]
    galleries = [f"--gallery={work / name}.gallery" for name in ("kept", "played")]
    (work / "snapshots").mkdir()
    command = [
        binary,
        *served,
        *galleries,
        f"--audit={work / 'audit'}",
        "--listen=127.0.0.1:0",
        "--index=flat",
        "--json",
    ]
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | GIVING_BACK)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    try:
        yield process, ready["listening"]
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


class Truth:
    """A right search, and what its answer must be."""

    def __init__(self, embedder: Embedder, work: Path) -> None:
        image = picture(random.Random(0), "PNG")
        snapshot = read_snapshot(work / "kept.gallery")
        (hits,) = snapshot.hits(snapshot.search(embedder.embed_encoded([image]), top_k=10))
        self._expected = [(hit.entry.id, hit.score) for hit in hits]
        self._request = reid_pb2.SearchRequest(image=image, gallery="kept", top_k=10).SerializeToString()

    async def holds(self, channel: Channel) -> bool:
        """Whether the server says it; one that is busy is asked again."""
        for _ in range(20):
            try:
                raw = await channel.unary_unary(f"/{SEARCH}")(self._request, timeout=30)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return False
                await asyncio.sleep(0.2)
                continue
            hits = reid_pb2.SearchResponse.FromString(raw).hits
            return [(hit.entry_id, hit.score) for hit in hits] == self._expected
        return False


async def attack_all(
    target: str, pid: int, truth: Truth, asked: Sequence[int], seed: int
) -> tuple[Outcome, Sequence[float], bool]:
    """Make every call, WORKERS at a time, in rounds; what came of them, the server's memory after each, and whether it
    was right then.
    """
    outcome, memory, right = Outcome(), [], True
    options = [*NARROW, ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(CHANNELS)]

    async def work(channel: grpc.aio.Channel, numbers: Iterator[int]) -> None:
        for number in numbers:
            await attack(target, channel, number, seed, outcome)

    step = max(1, len(asked) // ROUNDS)
    for start in range(0, len(asked), step):
        numbers = iter(asked[start : start + step])
        await asyncio.gather(*(work(channels[place % CHANNELS], numbers) for place in range(WORKERS)))
        right = await truth.holds(channels[0]) and right
        # Images of callers who went away are still decoded, and large ones take much.
        await asyncio.sleep(SETTLE_SECONDS)
        memory.append(resident_mib(pid))
    for channel in channels:
        await channel.close()
    return outcome, memory, right


async def attack(target: str, channel: grpc.aio.Channel, number: int, seed: int, outcome: Outcome) -> None:
    rng = random.Random(f"{seed}.{number}")
    kind = rng.choice(list(KINDS))
    outcome.kinds[kind] += 1
    if kind == "no gRPC":
        await knock(target, rng)
        return
    attack = KINDS[kind](rng)
    code, reason = await perform(channel, attack)
    while reason == ENDED:
        code, reason = await perform(channel, attack)
    outcome.codes[code] += 1
    if code in NEVER or not (code in ("OK", *WORDLESS) or reason):
        outcome.wrong.append(f"{number}: {kind} to {attack.method}, {attack.manner}: {code} {reason}")


async def perform(channel: Channel, attack: Attack) -> tuple[str, str]:
    """How a call ended: the name of its status, and the reason of it."""
    _, kind = METHODS.get(attack.method, (None, "unary"))
    path, options = f"/{attack.method}", dict[str, Any](timeout=attack.timeout, metadata=tuple(attack.metadata))
    try:
        if kind == "unary":
            call = channel.unary_unary(path)(attack.sent[0], **options)
            if attack.manner != "whole":
                await asyncio.sleep(attack.pause)
                call.cancel()
            await call
        elif kind == "stream":
            await read(channel.unary_stream(path)(attack.sent[0], **options), attack)
        else:
            stream = channel.stream_stream(path)(**options)
            for message in attack.sent:
                await stream.write(message)
            if attack.manner != "open":
                await stream.done_writing()
            await read(stream, attack)
    except grpc.aio.AioRpcError as error:
        return error.code().name, ENDED if OWN_WORDS in str(error.details()) else reason_of(error)
    except asyncio.InvalidStateError:
        return "OK", ENDED
    except asyncio.CancelledError:
        return "CANCELLED", ""
    return "OK", ""


async def read(call: StreamCall, attack: Attack) -> None:
    if attack.manner == "whole":
        while await call.read() is not grpc.aio.EOF:
            pass
        return
    if attack.manner == "left":
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.read(), attack.pause)
    else:
        await asyncio.sleep(attack.pause)
    call.cancel()


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if status is None or not status.details or not status.details[0].Unpack(info) or info.domain != "reidserve":
        return ""
    return str(info.reason) if info.metadata["request_id"] else ""


async def knock(target: str, rng: random.Random) -> None:
    """Bytes that are no gRPC."""
    host, _, port = target.rpartition(":")
    greeting = rng.choice(
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"",
        ]
    )
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(greeting + rng.randbytes(rng.randrange(2000)))
        await asyncio.wait_for(reader.read(100), PATIENCE_SECONDS)
    except (OSError, TimeoutError):
        pass
    else:
        writer.close()


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def encoded(message: str, **fields: Field) -> bytes:
    """The bytes of a message of reid.v1."""
    raw: bytes = getattr(reid_pb2, message)(**fields).SerializeToString()
    return raw


def picture(rng: random.Random, form: str) -> bytes:
    pixels = np.frombuffer(rng.randbytes(48 * 24 * 3), np.uint8).reshape(48, 24, 3)
    out = BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Some bits flipped, a piece cut, doubled, or replaced, or the end lost."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not changed:
            break
        start = rng.randrange(len(changed))
        end = min(len(changed), start + rng.choice([1, 2, 4, 64]))
        match rng.randrange(5):
            case 0:
                changed[start] ^= 1 << rng.randrange(8)
            case 1:
                changed[start:end] = rng.randbytes(end - start)
            case 2:
                del changed[start:end]
            case 3:
                changed[start:start] = changed[start:end] * rng.choice([1, 50])
            case 4:
                del changed[start:]
    return bytes(changed)


def bomb(rng: random.Random) -> bytes:
    """An image that says to be enormous, and in one case is."""
    sides = [rng.choice([1, 4_000, 20_000, 65_535, 2**31 - 1]) for _ in range(2)]
    match rng.randrange(4):
        case 0:  # grey PNG whose rows are there, all zero
            width = height = rng.choice([3_000, 9_000])
            rows = zlib.compress(bytes(height * (width // 8 + 1)))
            return png(width, height, 1, rows)
        case 1:
            return png(sides[0], sides[1], 8, zlib.compress(bytes(1000)))
        case 2:
            data = bytearray(picture(rng, "JPEG"))
            frame = data.index(b"\xff\xc0")
            data[frame + 5 : frame + 9] = struct.pack(">HH", *(min(side, 65_535) for side in sides))
            return bytes(data)
        case _:
            data = bytearray(picture(rng, "BMP"))
            data[18:26] = struct.pack("<ii", *(side * rng.choice([1, -1]) for side in sides))
            return bytes(data)


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_image(rng: random.Random, image: bytes) -> Attack:
    """An image, by one of the ways that images come."""
    entry = {"entry_id": f"h{rng.randrange(16)}", "image": image}
    request, method = rng.choice(
        [
            (encoded("SearchRequest", image=image, gallery="kept"), SEARCH),
            (encoded("SearchRequest", track={"images": [image, picture(rng, "PNG")]}, gallery="kept"), SEARCH),
            (encoded("EmbedRequest", image=image), EMBED),
            (encoded("RankRequest", image=image, gallery="kept"), RANK),
            (
                encoded("BatchSearchRequest", requests=[{"image": image, "gallery": "kept"}]),
                BATCH,
            ),
            (encoded("BatchUpsertEntriesRequest", gallery="played", entries=[entry]), UPSERT),
            (encoded("ImportEntriesRequest", gallery="played", sequence=1, entry=entry), IMPORT),
        ]
    )
    return Attack(method, [request])


def bad_image(rng: random.Random) -> Attack:
    return with_image(rng, mutated(rng, picture(rng, rng.choice(["JPEG", "PNG", "WEBP", "BMP"]))))


def bad_bomb(rng: random.Random) -> Attack:
    return with_image(rng, bomb(rng))


def templates(rng: random.Random) -> dict[str, bytes]:
    """A right message of many a method."""
    where = {"pids": {"any_of": ["1", "2"]}, "attributes": [{"name": "speed", "less": {"number": 3}}]}
    entry = {"entry_id": "h1", "image": picture(rng, "PNG"), "pid": "7", "attributes": {"a": {"text": "b"}}}
    query = {"entry_id": "n1", "gallery": "kept", "filter": where}
    return {
        SEARCH: encoded("SearchRequest", **query, rerank={"k1": 5}, top_k=3, min_score=0.1, min_generation=1),
        BATCH: encoded("BatchSearchRequest", requests=[query, query]),
        RANK: encoded("RankRequest", **query, generation=1),
        LIST: encoded("ListEntriesRequest", gallery="kept", page_size=5, page_token="1.7"),
        UPSERT: encoded("BatchUpsertEntriesRequest", gallery="played", entries=[entry], request_id="r"),
        IMPORT: encoded("ImportEntriesRequest", gallery="played", sequence=4, entry=entry),
    }


def bad_message(rng: random.Random) -> Attack:
    """Random bytes or a mutated message; where a model would be loaded by it, other bytes."""
    kept = templates(rng)
    method = rng.choice(list(METHODS))
    raw = mutated(rng, kept[method]) if method in kept and rng.random() < 0.7 else rng.randbytes(rng.randrange(300))
    if method == RELOAD:
        try:
            if not reid_pb2.ReloadRequest.FromString(raw).model:
                raw = b"\xff"
        except DecodeError:
            pass
    return Attack(method, [raw])


def bad_amount(rng: random.Random) -> Attack:
    """A message of nothing but empty messages, which would take 50 times its bytes."""
    method, unit = rng.choice(
        [(BATCH, b"\x0a\x00"), (UPSERT, b"\x12\x00"), (SEARCH, b"\x32\x00"), (IMPORT, b"\x1a\x02\x42\x00")]
    )
    return Attack(method, [unit * (1 << rng.randrange(10, 20))])


def odd_text(rng: random.Random) -> str:
    return rng.choice(
        ["", "\0", "../../etc/passwd", "a" * 5000, "人" * 1500, "'; drop table entry; --", "n1", "%s%n", "\u202e", "\n"]
    )


def odd_number(rng: random.Random, bits: int = 32) -> int:
    limit = 1 << (bits - 1)
    return rng.choice([0, 1, -1, 10_000, 10_001, limit - 1, -limit, rng.randrange(100)])


def odd_float(rng: random.Random) -> float:
    return rng.choice([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3e38, rng.random()])


def bad_filter(rng: random.Random) -> Attack:
    value = rng.choice(
        [{"text": odd_text(rng)}, {"integer": odd_number(rng, 64)}, {"number": odd_float(rng)}, {"boolean": True}, {}]
    )
    test = rng.choice(["equal", "less", "at_most", "greater", "at_least"])
    conditions = [{"name": rng.choice([odd_text(rng), "speed", "pid"]), test: value}] * rng.choice([0, 1, 2, 65])
    where = {
        "attributes": conditions,
        "ids": {"any_of": [odd_text(rng)] * rng.choice([1, 100])} if rng.random() < 0.5 else None,
        "exclude_camids": [odd_text(rng)] * rng.randrange(3),
        "since": {"seconds": odd_number(rng, 64), "nanos": odd_number(rng)} if rng.random() < 0.5 else None,
    }
    return Attack(SEARCH, [encoded("SearchRequest", entry_id="n1", gallery="kept", filter=where)])


def bad_number(rng: random.Random) -> Attack:
    rerank = {"k1": odd_number(rng), "k2": odd_number(rng), "weight": odd_float(rng), "shortlist": odd_number(rng)}
    request = encoded(
        "SearchRequest",
        entry_id=odd_text(rng) or "n1",
        gallery=rng.choice(["kept", "", odd_text(rng)]),
        top_k=odd_number(rng),
        generation=odd_number(rng, 64) if rng.random() < 0.3 else None,
        rerank=rerank if rng.random() < 0.3 else None,
        min_score=odd_float(rng),
        only_matches=rng.random() < 0.2,
        group_by_pid=rng.random() < 0.2,
        min_generation=rng.choice([0, 1, -(2**63)]),
    )
    return Attack(SEARCH, [request])


def bad_token(rng: random.Random) -> Attack:
    token = rng.choice([odd_text(rng), "1.-1", "1.5", "99.1", f"{2**63}.{2**63}", "1." + "9" * 18, "٣.٤"])
    request = encoded(
        "ListEntriesRequest",
        gallery="kept",
        page_size=odd_number(rng),
        page_token=token,
        generation=odd_number(rng, 64) if rng.random() < 0.3 else None,
    )
    return Attack(LIST, [request])


def bad_embedding(rng: random.Random) -> Attack:
    numbers = [rng.gauss(0, 1) for _ in range(rng.choice([0, 1, DIM - 1, DIM, DIM, DIM + 1, 4096]))]
    if numbers and rng.random() < 0.7:
        numbers[rng.randrange(len(numbers))] = odd_float(rng)
    raw = np.array(numbers, "<f4").tobytes() + rng.choice([b"", b"", b"x"])
    entry = {"entry_id": f"h{rng.randrange(16)}", "embedding": raw}
    request, method = rng.choice(
        [
            (encoded("SearchRequest", embedding=raw, gallery="kept"), SEARCH),
            (encoded("RankRequest", embedding=raw, gallery="kept"), RANK),
            (encoded("BatchUpsertEntriesRequest", gallery="played", entries=[entry]), UPSERT),
            (encoded("ImportEntriesRequest", gallery="played", sequence=1, entry=entry), IMPORT),
        ]
    )
    return Attack(method, [request])


def bad_write(rng: random.Random) -> Attack:
    """An entry, a change, a deletion, a copy or a model that cannot be."""
    entry = {
        "entry_id": odd_text(rng),
        "embedding": bytes(DIM * 4),
        "pid": odd_text(rng),
        "timestamp": {"seconds": odd_number(rng, 64), "nanos": odd_number(rng)},
        "attributes": {odd_text(rng): {"number": odd_float(rng)}, "a b": {}},
    }
    said = {key: entry[key] for key in ("entry_id", "pid", "timestamp", "attributes")}
    paths = [rng.choice(["pid", "row", "attributes.", f"attributes.{odd_text(rng)}", odd_text(rng), "timestamp"])]
    upsert = encoded(
        "BatchUpsertEntriesRequest",
        gallery="played",
        entries=[entry] * rng.choice([0, 1, 2, 257]),
        request_id=odd_text(rng),
    )
    request, name = rng.choice(
        [
            (upsert, "BatchUpsertEntries"),
            (encoded("UpdateEntryRequest", gallery="played", entry=said, update_mask={"paths": paths}), "UpdateEntry"),
            (encoded("BatchDeleteEntriesRequest", gallery="played", filter={}), "BatchDeleteEntries"),
            (
                encoded("BatchDeleteEntriesRequest", gallery="played", entry_ids=[odd_text(rng)] * 3),
                "BatchDeleteEntries",
            ),
            (encoded("CreateSnapshotRequest", gallery="played", name=odd_text(rng) or "../x"), "CreateSnapshot"),
            (encoded("ReloadRequest", model=odd_text(rng) or "x", galleries={"kept": odd_text(rng)}), "Reload"),
        ]
    )
    service = "ModelService" if name == "Reload" else "GalleryService"
    return Attack(f"reid.v1.{service}/{name}", [request])


def bad_metadata(rng: random.Random) -> Attack:
    metadata: list[tuple[str, str | bytes]] = rng.choice(
        [
            [(f"x-{place}", "y") for place in range(rng.choice([65, 150]))],
            [("x-long", "y" * rng.choice([6_200, 7_500, 20_000, 200_000]))],
            [("x-request-id", rng.choice(["", "y" * 65, "a b", "%0a", "ok"]))],
            [("authorization", rng.choice(["Bearer", "Bearer " + "x" * 500, "Basic eDp5"]))] * rng.choice([1, 2]),
            [("traceparent", rng.choice(["00-0-0-0", "y", "00-" + "f" * 32 + "-" + "0" * 16 + "-zz"]))],
            [("some-bin", rng.randbytes(rng.choice([0, 100, 5_000])))],
        ]
    )
    message = encoded("SearchRequest", entry_id="n1", gallery="kept")
    return Attack(SEARCH, [message], metadata)


def bad_stream(rng: random.Random) -> Attack:
    """A ranking that is not read, an import that stops half way, goes back, or says nothing."""
    rank = encoded("RankRequest", entry_id="n1", gallery="kept")
    entry = {"entry_id": f"h{rng.randrange(16)}", "embedding": rng.randbytes(DIM * 4)}
    pieces = [
        encoded(
            "ImportEntriesRequest",
            gallery=rng.choice(["played", "played", "", "kept", "nowhere"]),
            sequence=odd_number(rng, 64),
            entry=entry,
        )
        for _ in range(rng.randrange(4))
    ]
    if rng.random() < 0.4:
        return Attack(RANK, [rank], manner=rng.choice(["left", "unread"]))
    return Attack(IMPORT, pieces, manner=rng.choice(["whole", "left", "unread", "open"]))


def bad_caller(rng: random.Random) -> Attack:
    """Who goes away, has no time, or asks for what there is not."""
    image = encoded("SearchRequest", image=picture(rng, "JPEG"), gallery="kept")
    match rng.randrange(3):
        case 0:
            return Attack(SEARCH, [image], manner="left", pause=rng.choice([0, 0.001, 0.005]))
        case 1:
            return Attack(SEARCH, [image], timeout=rng.choice([0.0005, 0.005, 0.02]))
        case _:
            return Attack(rng.choice(["reid.v1.SearchService/Drop", "x.Y/Z", "grpc.health.v1.Health/Nope"]), [image])


KINDS: dict[str, Callable[[random.Random], Attack]] = {
    "image": bad_image,
    "bomb": bad_bomb,
    "message": bad_message,
    "amount": bad_amount,
    "filter": bad_filter,
    "number": bad_number,
    "token": bad_token,
    "embedding": bad_embedding,
    "write": bad_write,
    "metadata": bad_metadata,
    "stream": bad_stream,
    "caller": bad_caller,
    "no gRPC": bad_caller,
}


if __name__ == "__main__":
    start = time.perf_counter()
    sys.exit(main())
