"""Who has which images, and what becomes of them when workers end: on a cluster of threads that end when told."""

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Embedder, Embedding, Embeddings, read_artifact
from reidserve.embed.workers import LOCAL, embed_on_cluster
from reidserve.embed.workers.cluster import Cluster
from reidserve.embed.workers.embedder import MOST_DEATHS, UNDER_WAY, ClusterEmbedder
from reidserve.embed.workers.worker import Ready, Worker
from reidserve.errors import ArtifactError, ClusterError, DeviceError, EmbeddingError, ImageError, ReidError, UsageError
from tests.conftest import write_crops

POISON = b"what no worker survives"


class EndedError(Exception):
    """What a call comes to whose process ended."""


class Process:
    """A worker on a thread of its own, which ends when it is given POISON."""

    def __init__(self, cluster: "Threads") -> None:
        self.cluster, self.alive, self.under_way = cluster, True, 0
        self.worker = Worker()
        self.worker._embedder, self.worker._threads = cluster.embedder, 1
        self.thread = ThreadPoolExecutor(1)

    def start(self, *_) -> Ready:
        if self.cluster.failure is not None:
            raise self.cluster.failure
        return Ready("here", self.cluster.embedder.engine, "")

    def embed(self, images: list[bytes]):
        self.cluster.go_on.wait(60)
        self.under_way -= 1
        self.alive &= POISON not in images
        if not self.alive:
            raise EndedError("ended by a signal")
        return self.worker.embed(images)


class Threads(Cluster):
    """A cluster of threads; they embed as long as they are told to go on."""

    def __init__(self, embedder: Embedder, room: int = 2, failure: Exception | None = None) -> None:
        self.embedder, self.size, self.failure = embedder, room, failure
        self.processes: list[Process] = []
        self.given: list[list[bytes]] = []
        self.most_under_way = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def room(self, *, processors: int, gpus: int) -> int:
        return self.size

    def share(self, value: object) -> object:
        return value

    def start(self, kind: type, *, processors: int, gpus: int) -> Process:
        self.processes.append(Process(self))
        return self.processes[-1]

    def call(self, process: Process, method: str, *arguments) -> Future:
        if method == "embed":
            self.given += arguments
            process.under_way += 1
            self.most_under_way = max(self.most_under_way, process.under_way)
        return process.thread.submit(getattr(process, method), *arguments)

    def has_ended(self, error: BaseException) -> bool:
        return isinstance(error, EndedError)

    def end(self, process: Process) -> None:
        process.thread.shutdown()


def stack(answers: Sequence[Embedding | ReidError]) -> Embeddings:
    """The embeddings (N, dim) of images that all have one."""
    return np.stack([answer for answer in answers if not isinstance(answer, ReidError)])


@pytest.fixture
def threads(embedder: Embedder) -> Threads:
    return Threads(embedder)


@pytest.fixture
def workers(threads: Threads, model: Path) -> Iterator[ClusterEmbedder]:
    opened = ClusterEmbedder(threads, read_artifact(model), precision="fp32", device="cpu")
    yield opened
    opened.close()


@pytest.fixture
def images(tmp_path: Path) -> list[bytes]:
    """100 encoded crops, all different."""
    return [path.read_bytes() for path in write_crops(tmp_path / "crops", pids=50)]


def test_embeddings_come_in_the_order_of_their_images(
    workers: ClusterEmbedder, images: list[bytes], embedder: Embedder
):
    answers = workers.embed_each([workers.prepare(image) for image in images])
    np.testing.assert_array_equal(stack(answers), embedder.embed_encoded(images))
    assert (workers.workers, workers.nodes, workers.uniform, workers.engine) == (2, 1, True, embedder.engine)


def test_a_worker_has_no_more_than_it_needs_to_go_on(workers: ClusterEmbedder, threads: Threads, images: list[bytes]):
    threads.go_on.clear()
    prepared = [workers.prepare(image) for image in images]
    while len(threads.given) < 2 * UNDER_WAY:
        threading.Event().wait(0.001)
    threads.go_on.set()
    workers.embed_each(prepared)
    assert threads.most_under_way == UNDER_WAY
    assert sum(map(len, threads.given)) == len(images)


def test_equal_images_that_are_under_way_are_embedded_once(
    workers: ClusterEmbedder, threads: Threads, images: list[bytes]
):
    first, second = (workers.prepare(images[0]) for _ in range(2))
    assert first is second
    workers.embed_each([first, second])
    assert threads.given == [[images[0]]]


def test_what_is_no_image_costs_no_other_its_answer(workers: ClusterEmbedder, images: list[bytes], embedder: Embedder):
    answers = workers.embed_each([workers.prepare(data) for data in (images[0], b"no image", images[1])])
    assert isinstance(answers[1], ImageError)
    np.testing.assert_array_equal(stack(answers[::2]), embedder.embed_encoded(images[:2]))


def test_an_image_that_ends_workers_is_left_out_and_every_other_is_embedded(
    workers: ClusterEmbedder, threads: Threads, images: list[bytes], embedder: Embedder
):
    given = [*images[:40], POISON, *images[40:]]
    answers = workers.embed_each([workers.prepare(data) for data in given])
    poisoned = answers.pop(40)
    assert isinstance(poisoned, EmbeddingError)
    assert str(poisoned) == "3 workers failed on it: ended by a signal"
    np.testing.assert_array_equal(stack(answers), embedder.embed_encoded(images))
    deadly = [batch for batch in threads.given if POISON in batch]
    assert len(deadly) == MOST_DEATHS
    # After the first time it is given alone.
    assert deadly[1:] == [[POISON], [POISON]]
    assert len(threads.processes) == 2 + MOST_DEATHS


def test_an_image_that_a_worker_fails_on_without_ending_is_left_out(
    workers: ClusterEmbedder, threads: Threads, images: list[bytes], monkeypatch
):
    def fail(self, given: list[bytes]):
        raise MemoryError("no memory")

    monkeypatch.setattr(Process, "embed", fail)
    (answer,) = workers.embed_each([workers.prepare(images[0])])
    assert str(answer) == "3 workers failed on it: no memory"
    assert len(threads.processes) == 2


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (DeviceError("no such device"), "a worker refuses to start: no such device"),
        (
            EndedError("No module named 'reidserve'"),
            "3 workers ended before they were ready: No module named 'reidserve'",
        ),
    ],
)
def test_workers_that_do_not_start_end_the_build(embedder: Embedder, model: Path, failure: Exception, message: str):
    threads = Threads(embedder, failure=failure)
    with pytest.raises(ClusterError, match=message):
        ClusterEmbedder(threads, read_artifact(model), precision="fp32", device="cpu")
    assert threads.given == []


def test_workers_that_cannot_be_replaced_leave_nobody_waiting(
    workers: ClusterEmbedder, threads: Threads, images: list[bytes]
):
    threads.failure = EndedError("the node is full")
    prepared = [workers.prepare(data) for data in (POISON, *images)]
    with pytest.raises(ClusterError, match="3 workers ended before they were ready: the node is full"):
        workers.embed_each(prepared)
    with pytest.raises(ClusterError, match="the node is full"):
        workers.prepare(b"one more").result(60)


def test_a_cluster_without_room_is_refused(embedder: Embedder, model: Path):
    with pytest.raises(ClusterError, match="no node of the cluster has room for a worker"):
        ClusterEmbedder(Threads(embedder, room=0), read_artifact(model), precision="fp32", device="cpu")


def test_what_cannot_be_known_of_other_machines_is_refused_before_any_is_asked(model: Path, tmp_path: Path):
    with (
        pytest.raises(UsageError, match="--ray needs a --device by name"),
        embed_on_cluster(model, LOCAL, device="auto"),
    ):
        pass
    with pytest.raises(ArtifactError, match="no model at"), embed_on_cluster(tmp_path, LOCAL):
        pass


def test_without_ray_a_build_says_how_to_install_it(model: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = pytest.raises(ClusterError, match=r"not installed: pip install 'reidserve\[cpu,ray\]'")
    with missing, embed_on_cluster(model, LOCAL):
        pass
