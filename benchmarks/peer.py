"""The server beside a peer: the same job on LitServe, ONNX Runtime and FAISS, in turn, in one run.

    python -P benchmarks/peer.py [--quick]

Both serve the network and the gallery of benchmarks/serve.py and are asked by as many clients in a process of their
own, turn by turn: reid-serve over gRPC, LitServe over HTTP, as its guide shows it (benchmarks/parts/litserve_peer.py),
with one worker and with one for each core. Their answers must have equal scores, rank by rank. Beside them stands what
the engine alone does in batches. LitServe is installed for this run, into a folder of its own under build/.
"""

import argparse
import base64
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from reidserve.embed import Precision, open_embedder
from reidserve.embed.cores import cores
from reidserve.index import read_snapshot

PEER = Path(__file__).with_name("parts") / "litserve_peer.py"
INSTALLED = Path(__file__).parents[1] / "build" / "peer"
LITSERVE = "litserve==0.2.19"
PRECISIONS: Sequence[Precision] = ("fp32", "int8")
START_SECONDS = 120.0
CLOSE = 1e-5

Figures = dict[str, Any]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="seconds: ResNet-18-IBN-a at 64x32, 1,000 entries")
    arguments.add_argument("--clients", action="store_true", help="be the peer's clients")
    asked = arguments.parse_args()
    if asked.clients:
        return be_clients()
    quick = bool(asked.quick)
    install()
    serve = runpy.run_path(str(Path(__file__).with_name("serve.py")), run_name="serve")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        serve["prepare"](work, quick=quick)
        figures = {precision: measure(serve, work, precision, quick=quick) for precision in PRECISIONS}
    right = all(found["equal_answers"] for found in figures.values())
    faster = all(found["ours_over_peer"] >= 1 for found in figures.values())
    report = {
        "name": "peer",
        "holds": right and (quick or faster),
        "quick": quick,
        "cores": cores(),
        "clients": serve["CLIENTS"],
        **{f"{name}_{precision}": value for precision in PRECISIONS for name, value in figures[precision].items()},
        "versions": {
            "litserve": LITSERVE.partition("==")[2],
            **{name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio", "faiss-cpu")},
        },
    }
    print(json.dumps(report))
    return 0 if report["holds"] else 1


def install() -> None:
    """LitServe and what it needs, beside our own packages and not among them."""
    if not (INSTALLED / "litserve").is_dir():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", INSTALLED, LITSERVE)
        subprocess.run([*map(str, pip)], check=True, stdout=sys.stderr)


def measure(serve: dict[str, Any], work: Path, precision: Precision, *, quick: bool) -> Figures:
    """Images/s of both, and of the engine alone, in turn."""
    seconds, turns = (0.5, 1) if quick else (5.0, 5)
    embedder = open_embedder(work / "model", precision=precision)
    bare = serve["Bare"](embedder, read_snapshot(work / "bench.gallery", identity=embedder.contract.identity))
    images = serve["read_images"](work / "images")
    counts = sorted({1, cores()})
    rates: dict[str, list[float]] = {"ours": [], "engine": [], **{f"peer_{count}": [] for count in counts}}
    with ExitStack() as opened:
        ours = opened.enter_context(serve["clients_beside"]())
        theirs = opened.enter_context(clients_beside(serve))
        # The peer's index is exact, so ours is: of random entries, as these are, proposals would miss some.
        _, said = opened.enter_context(serve["serving"](work, precision, "--index", "flat"))
        expected = ours(said["listening"], work / "images", do="answers")
        furthest = 0.0
        for count in counts:
            # One at a time: a peer's idle workers would take memory, and its loops time.
            with peer(work, precision, workers=count) as port:
                ask = partial(theirs, str(port), work / "images")
                furthest = max(furthest, further(ask(do="answers"), expected))
                for _ in range(turns):
                    rates[f"peer_{count}"].append(ask(do="closed", clients=serve["CLIENTS"], seconds=seconds)["rate"])
                    asked = ours(
                        *(said["listening"], work / "images"), do="closed", clients=serve["CLIENTS"], seconds=seconds
                    )
                    rates["ours"].append(asked["rate"])
                    batch = max(1, round(asked["batch_size"]))
                    rates["engine"].append(bare.engine_by_batch(images, (batch,), seconds)[batch])
    middle = {name: median(some) for name, some in rates.items()}
    best = max(middle[f"peer_{count}"] for count in counts)
    return {
        "equal_answers": furthest <= CLOSE,
        "scores_apart": furthest,
        "ours_over_peer": round(middle["ours"] / best, 3),
        "ours_over_engine": round(middle["ours"] / middle["engine"], 3),
        **{f"peer_{count}_over_engine": round(middle[f"peer_{count}"] / middle["engine"], 3) for count in counts},
    }


def further(answers: Figures, expected: Figures) -> float:
    """How far apart two scores of a rank are at most: FAISS adds in another order, and nearly equal entries swap."""
    pairs = zip(answers["hits"], expected["hits"], strict=True)
    apart = (abs(one[1] - other[1]) for found, right in pairs for one, other in zip(found, right, strict=True))
    return float(max(apart))


@contextmanager
def peer(work: Path, precision: Precision, *, workers: int) -> Iterator[int]:
    """LitServe with the model and the gallery that were prepared; gives its port."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    served = (work / "model", work / "bench.gallery", precision, port, workers)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(INSTALLED), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-P", str(PEER), *map(str, served)],
        env=environment, stdout=sys.stderr, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(port, process)
        yield port
    finally:
        # Its workers are processes of the same group.
        os.killpg(process.pid, 15)
        process.wait(60)


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError("LitServe did not start")


# The peer's clients' process.


@contextmanager
def clients_beside(serve: dict[str, Any]) -> Iterator[Callable[..., Figures]]:
    with serve["running"]([sys.executable, "-P", __file__, "--clients"]) as (process, _):
        yield serve["Clients"](process)


def be_clients() -> int:
    """Do what lines of JSON ask for, and say what came of each."""
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(do(**json.loads(line))), flush=True)
    return 0


def do(target: str, images: str, **work: Any) -> Figures:  # noqa: ANN401
    bodies = [
        json.dumps({"image": base64.b64encode(path.read_bytes()).decode()}) for path in sorted(Path(images).iterdir())
    ]
    if work.pop("do") == "answers":
        with closing(HTTPConnection("127.0.0.1", int(target))) as connection:
            return {"hits": [ask(connection, body)["hits"] for body in bodies]}
    return closed(int(target), bodies, **work)


def closed(port: int, bodies: Sequence[str], *, clients: int, seconds: float) -> Figures:
    """Clients that ask again as soon as they are answered."""
    answered = [0] * clients
    until = time.perf_counter() + seconds

    def be_one(place: int) -> None:
        with closing(HTTPConnection("127.0.0.1", port)) as connection:
            while time.perf_counter() < until:
                ask(connection, bodies[(place + clients * answered[place]) % len(bodies)])
                answered[place] += 1

    threads = [threading.Thread(target=be_one, args=(place,)) for place in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"rate": sum(answered) / (time.perf_counter() - began)}


def ask(connection: HTTPConnection, body: str) -> Figures:
    connection.request("POST", "/predict", body, {"content-type": "application/json"})
    response = connection.getresponse()
    said: Figures = json.loads(response.read())
    if response.status != 200:
        raise RuntimeError(f"the peer answered {response.status}: {said}")
    return said


if __name__ == "__main__":
    sys.exit(main())
