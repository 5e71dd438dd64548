"""Bulk embedding on a cluster: who has which images, and what happens to them when a worker ends."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

from reidserve.embed.ahead import DECODERS
from reidserve.embed.artifact import Artifact, read_artifact
from reidserve.embed.contract import Precision
from reidserve.embed.embedder import AHEAD, Embedding
from reidserve.embed.engines import Device, is_unverified
from reidserve.embed.workers.cluster import INSTALL, Cluster, fault, joined
from reidserve.embed.workers.worker import Orders, Ready, Worker, read_files, versions_for
from reidserve.errors import ClusterError, EmbeddingError, ReidError, UsageError

UNDER_WAY = 2
"""Batches that a worker has at once: the next one is there when it is done with one."""

MOST_DEATHS = 3
"""An image that so many workers ended on is left out, and so many workers in a row may end before they are ready."""

START_S = 120.0
"""How long workers are waited for, seconds; those that are ready later join."""

_BATCH = 16
_GPU_DEVICES = ("cuda", "tensorrt")


@dataclass(eq=False, slots=True)
class _Job:
    """An encoded image that somebody waits for, and how many workers ended while they had it."""

    data: bytes
    answer: Future[Embedding | ReidError]
    deaths: int = 0


@dataclass(eq=False, slots=True)
class _Seat:
    """Room for a worker: when one ends, another takes its place.

    Attributes:
        worker: the cluster's handle of it.
        ready: whether it can be given work.
        first: what the first worker here said.
        under_way: the batches that it has.
        failed_starts: how many workers in a row ended before they were ready.
    """

    worker: Any = None
    ready: bool = False
    first: Future[Ready] = field(default_factory=Future)
    under_way: list[list[_Job]] = field(default_factory=list)
    failed_starts: int = 0

    @property
    def free(self) -> bool:
        """Whether it may be given more; an image that a worker may end on has it for itself."""
        suspected = any(job.deaths for batch in self.under_way for job in batch)
        return self.ready and not suspected and len(self.under_way) < UNDER_WAY


class ClusterEmbedder:
    """A BulkEmbedder whose images are decoded and embedded by workers, one for each processor or GPU of a cluster.

    `prepare` hands an image over and gives what will be its embedding. One thread alone knows who has what, and is told
    what happens: each worker has at most UNDER_WAY batches, and what it had when it ended goes to others, image by
    image, so that one which ends workers is found and left out.

    Attributes:
        contract: what is promised.
        engine: what computes it, such as "fp32/onnxruntime-cpu".
        unverified: whether the rank-parity gate has not let through what this engine computes.
        ahead: how many images are worth preparing in front of those that are waited for.
        workers: how many were ready at the beginning.
        nodes: on how many machines.
        uniform: whether all of these make the same of the canaries, to the last bit.

    Raises:
        ClusterError: the cluster has no room, or its workers are not what this machine expects of them.
    """

    def __init__(self, cluster: Cluster, artifact: Artifact, *, precision: Precision, device: Device) -> None:
        self._cluster = cluster
        gpus = 1 if device in _GPU_DEVICES else 0
        self._size = {"processors": DECODERS if gpus else 1, "gpus": gpus}
        self._orders = Orders(precision, device, self._size["processors"], versions_for(device))
        self._files = cluster.share(read_files(artifact))
        self._seats = [_Seat() for _ in range(cluster.room(**self._size))]
        if not self._seats:
            raise ClusterError(f"no node of the cluster has room for a worker: it needs {self._size}")
        self._waiting: deque[_Job] = deque()
        self._suspects: deque[_Job] = deque()
        self._lost: ClusterError | None = None
        self._answers: WeakValueDictionary[bytes, Future[Embedding | ReidError]] = WeakValueDictionary()
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for seat in self._seats:
            self._fill(seat)
        self._thread = threading.Thread(target=self._run, name="cluster")
        self._thread.start()
        try:
            ready = self._first_ready()
        except BaseException:
            self.close()
            raise
        self.contract = artifact.contract
        self.engine = ready[0].engine
        self.unverified = is_unverified(self.contract, self.engine)
        self.ahead = max(AHEAD, len(self._seats) * UNDER_WAY * _BATCH)
        self.workers = len(ready)
        self.nodes = len({one.node for one in ready})
        self.uniform = len({one.canaries for one in ready}) == 1

    def prepare(self, data: bytes, /) -> Future[Embedding | ReidError]:
        """Hand an encoded image over; equal ones that are under way at once are embedded once."""
        answer = self._answers.get(data)
        if answer is None:
            answer = self._answers[data] = Future()
            self._events.put(partial(self._waiting.append, _Job(data, answer)))
        return answer

    def embed_each(self, images: Sequence[Future[Embedding | ReidError]], /) -> list[Embedding | ReidError]:
        """Wait for images that were handed over: per image its embedding (dim,), or what was wrong with it.

        Raises:
            ClusterError: there are no workers any more.
        """
        return [answer.result() for answer in images]

    def close(self) -> None:
        """End the workers; what they have is forgotten."""
        self._events.put(None)
        self._thread.join()
        for seat in self._seats:
            self._cluster.end(seat.worker)

    def _first_ready(self) -> list[Ready]:
        """What the workers say that are ready in time: all of them, as a rule."""
        firsts = [seat.first for seat in self._seats]
        done, _ = wait(firsts, timeout=START_S, return_when=FIRST_EXCEPTION)
        if not done:
            raise ClusterError(f"none of {len(firsts)} workers was ready in {START_S:.0f} s: the cluster is busy")
        return [first.result() for first in firsts if first in done]

    def _run(self) -> None:
        for event in iter(self._events.get, None):
            try:
                event()
                self._hand_out()
            except Exception as error:  # noqa: BLE001  # whatever it is, nobody may wait for ever
                self._lost = ClusterError(f"the cluster is lost: {fault(error)}")
            if self._lost is not None:
                self._give_up(self._lost)

    def _hand_out(self) -> None:
        """Give every worker that is free what is next, those with the least first."""
        while free := [seat for seat in self._seats if seat.free]:
            seat = min(free, key=lambda seat: len(seat.under_way))
            if self._suspects and not seat.under_way:
                batch = [self._suspects.popleft()]
            elif self._waiting and not self._suspects:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            else:
                return
            seat.under_way.append(batch)
            self._call(seat, "embed", [job.data for job in batch], then=partial(self._embedded, seat, batch))

    def _embedded(self, seat: _Seat, batch: list[_Job], worker: object, done: Future[Any]) -> None:
        if batch not in seat.under_way:
            return  # given up meanwhile
        seat.under_way.remove(batch)
        error = done.exception()
        if error is None:
            for job, answer in zip(batch, done.result(), strict=True):
                job.answer.set_result(answer)
            return
        for job in batch:
            self._suspect(job, error)
        if worker is seat.worker and self._cluster.has_ended(error):
            self._cluster.end(worker)  # where it is only not reached
            self._fill(seat)

    def _suspect(self, job: _Job, error: BaseException) -> None:
        job.deaths += 1
        if job.deaths < MOST_DEATHS:
            self._suspects.append(job)
        else:
            job.answer.set_result(EmbeddingError(f"{MOST_DEATHS} workers failed on it: {fault(error)}"))

    def _fill(self, seat: _Seat) -> None:
        seat.ready = False
        seat.worker = self._cluster.start(Worker, **self._size)
        self._call(seat, "start", self._files, self._orders, then=partial(self._started, seat))

    def _started(self, seat: _Seat, worker: object, done: Future[Ready]) -> None:
        error = done.exception()
        if error is None:
            seat.ready, seat.failed_starts = True, 0
            if not seat.first.done():
                seat.first.set_result(done.result())
            return
        seat.failed_starts += 1
        if isinstance(error, ReidError):
            self._lost = ClusterError(f"a worker refuses to start: {fault(error)}")
        elif seat.failed_starts == MOST_DEATHS:
            self._lost = ClusterError(
                f"{MOST_DEATHS} workers ended before they were ready: {fault(error)} (each machine needs what is "
                f"installed here: {INSTALL})"
            )
        else:
            self._fill(seat)

    def _call(self, seat: _Seat, method: str, *arguments: object, then: Callable[[object, Future[Any]], None]) -> None:
        """Call a seat's worker; what follows is an event, once it is done or can never be."""
        worker = seat.worker
        called = self._cluster.call(worker, method, *arguments)
        called.add_done_callback(lambda done: self._events.put(partial(then, worker, done)))

    def _give_up(self, error: ClusterError) -> None:
        jobs = [*self._waiting, *self._suspects]
        self._waiting.clear()
        self._suspects.clear()
        for seat in self._seats:
            jobs += [job for batch in seat.under_way for job in batch]
            seat.under_way.clear()
            seat.ready = False
            if not seat.first.done():
                seat.first.set_exception(error)
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(error)


@contextmanager
def embed_on_cluster(
    model: Path, address: str, *, precision: Precision = "fp32", device: Device = "cpu"
) -> Iterator[ClusterEmbedder]:
    """Embed with an artifact on the cluster at `address`, or a LOCAL one, as long as the block lasts.

    Raises:
        UsageError: nobody can say what the device `auto` comes to on each machine.
        ArtifactError: the folder is no whole artifact.
        ClusterError: the cluster is not reached, has no room, or its workers do not fit.
    """
    if device == "auto":
        raise UsageError("--ray needs a --device by name: auto may come to another one on each machine")
    artifact = read_artifact(model)
    with joined(address) as cluster:
        embedder = ClusterEmbedder(cluster, artifact, precision=precision, device=device)
        try:
            yield embedder
        finally:
            embedder.close()
