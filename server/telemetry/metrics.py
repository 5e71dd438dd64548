"""Metrics for Prometheus. Nothing else imports prometheus_client."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from reidserve import errors
from reidserve.errors import ReidError
from reidserve.proto.reid.v1 import reid_pb2

if TYPE_CHECKING:
    from reidserve.server.deployment import Deployment

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)

METHODS = frozenset(
    f"{service.full_name}/{method.name}"
    for service in reid_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
CODES = frozenset(
    {
        "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
        "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
        "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
    }
)  # fmt: skip
REFUSALS = (
    "DEADLINE_EXCEEDED", "NOT_SERVING", "OVERLOADED", "PERMISSION_DENIED", "RATE_LIMITED", "UNAUTHENTICATED",
)  # fmt: skip
STAGES = frozenset({"decode", "embed", "search"})
REASONS = frozenset(
    kind.reason for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ReidError)
)
OTHER = "other"
"""The label of what is none of these names: each one that a caller made up would stay for ever."""


class Metrics:
    """Counts of one server, in a registry of its own; safe from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "reidserve_requests", "Calls that ended, by method and gRPC status.", ["method", "code"],
            registry=self._registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "reidserve_request_seconds", "From a call's arrival to its end.", ["method"],
            registry=self._registry, buckets=SECONDS,
        )  # fmt: skip
        self._stage_seconds = Histogram(
            "reidserve_stage_seconds", "What a stage of a call took, waiting for it included.", ["stage"],
            registry=self._registry, buckets=SECONDS,
        )  # fmt: skip
        self._batch_images = Histogram(
            "reidserve_batch_images", "Images that the engine computed together.",
            registry=self._registry, buckets=IMAGES,
        )  # fmt: skip
        self._batch_seconds = Histogram(
            "reidserve_batch_seconds", "What the engine took for a batch.", registry=self._registry, buckets=SECONDS
        )
        self._rejected = Counter(
            "reidserve_rejected", "Calls that were turned away before they cost anything, by reason.", ["reason"],
            registry=self._registry,
        )  # fmt: skip
        # Finding the one of given labels takes as long as counting with it.
        self._ended: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._stages: dict[str, Histogram] = {}
        self._watching: _Watching | None = None
        # From 0 on, so that the first ones show as a rate.
        for reason in REFUSALS:
            self._rejected.labels(reason)

    def call(self, method: str, code: str, seconds: float) -> None:
        """A call ended."""
        known = self._ended.get((method, code))
        if known is None:
            method, code = (method if method in METHODS else OTHER), (code if code in CODES else OTHER)
            known = self._ended.setdefault(
                (method, code), (self._requests.labels(method, code), self._request_seconds.labels(method))
            )
        requests, histogram = known
        requests.inc()
        histogram.observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """A call went through a stage."""
        known = self._stages.get(name)
        if known is None:
            name = name if name in STAGES else OTHER
            known = self._stages.setdefault(name, self._stage_seconds.labels(name))
        known.observe(seconds)

    def batch(self, images: int, seconds: float) -> None:
        """The engine computed a batch."""
        self._batch_images.observe(images)
        self._batch_seconds.observe(seconds)

    def rejected(self, reason: str) -> None:
        """Something was turned away."""
        self._rejected.labels(reason if reason in REASONS else OTHER).inc()

    def watch(self, deployment: "Deployment") -> None:
        """Show what a deployment serves from now on, and no other."""
        if self._watching is not None:
            self._registry.unregister(self._watching)
        self._watching = _Watching(deployment)
        self._registry.register(self._watching)

    def render(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)


class _Watching(Collector):
    """What a deployment serves, looked at when it is asked for; a server that loads or has ended shows no sample."""

    def __init__(self, deployment: "Deployment") -> None:
        self._deployment = deployment

    def collect(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("reidserve_images_in_flight", "Images that were let in and are not yet out.")
        queue = GaugeMetricFamily("reidserve_queue_images", "Images that wait for the engine.")
        generations = GaugeMetricFamily(
            "reidserve_gallery_generation", "Writes that the served state of a gallery has.", labels=["gallery"]
        )
        entries = GaugeMetricFamily(
            "reidserve_gallery_entries", "Entries that can be found in a gallery.", labels=["gallery"]
        )
        model = InfoMetricFamily("reidserve_model", "The model that serves.")
        reloads = CounterMetricFamily("reidserve_reloads", "Times another model was put in the first one's place.")
        if (served := self._deployment.served) is not None:
            pipeline = served.pipeline
            in_flight.add_metric([], pipeline.in_flight)
            queue.add_metric([], pipeline.waiting)
            for name, gallery in pipeline.galleries.items():
                snapshot = gallery.snapshot
                generations.add_metric([name], snapshot.generation)
                entries.add_metric([name], len(snapshot))
            embedder = pipeline.embedder
            shown = {
                "identity": embedder.contract.identity,
                "engine": embedder.engine,
                "unverified": str(embedder.unverified).lower(),
            }
            model.add_metric([], shown)
            reloads.add_metric([], served.reloads)
        yield from (in_flight, queue, generations, entries, model, reloads)
