"""Serving: a server's life from a bound port through loading and answering to a drained stop."""

import asyncio
import concurrent.futures
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from reidserve.embed import Device, Embedder, Precision, open_embedder
from reidserve.embed.images import MAX_BYTES
from reidserve.errors import GalleryError, ServerError
from reidserve.index import Gallery, IndexDevice, IndexKind, open_gallery
from reidserve.index.threshold import Threshold, read_threshold
from reidserve.server.calls import Calls
from reidserve.server.pipeline import Pipeline
from reidserve.server.service import GALLERY_SERVICE, SERVICE, handlers

# Room for the largest image and what stands around it, so that our own error meets an image that is too large.
_MAX_MESSAGE = 2 * MAX_BYTES
_UNLIMITED = 2**20
_KEEPALIVE_MILLISECONDS = 60_000
_REFRESH_SECONDS = 1.0
_NAMED_DAMAGES = 20
_LAST_WORDS_SECONDS = 1.0  # for replies that are on their way when the last call is done

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to serve, and where.

    Attributes:
        model: the artifact's folder.
        galleries: the galleries' folders; each is named by its folder without .gallery.
        listen: host:port; port 0 takes a free one.
        device: what runs the model.
        grace: how long calls under way may take after SIGTERM, seconds.
        index: how rows are searched.
        index_device: where rows are searched.
        max_memory: what each gallery's entries may take, bytes; None for no limit.
        threshold: the file of the model's calibrated threshold; None for none.
        precision: which flavour of the model runs.
    """

    model: Path
    galleries: Sequence[Path]
    listen: str
    device: Device
    grace: float
    index: IndexKind = "auto"
    index_device: IndexDevice = "cpu"
    max_memory: int | None = None
    threshold: Path | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that answers.

    Attributes:
        address: where it listens.
        pipeline: what answers.
    """

    address: str
    pipeline: Pipeline


async def serve(settings: Settings, *, on_ready: Callable[[Ready], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the calls under way and return.

    The port is bound first and health is NOT_SERVING until the model is warm, its canaries hold and the galleries
    are open.

    Raises:
        ServerError: the address cannot be listened on.
        ArtifactError, DeviceError, GalleryError, ThresholdError: what was to be served cannot be.
    """
    _check_address(settings.listen)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    calls, checks = Calls(), health_aio.HealthServicer()
    server, address = await _start(settings.listen, calls, checks)
    try:
        loading = _in_background(lambda: _load(settings))
        stopping = asyncio.create_task(stop.wait())
        first: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return
        embedder, galleries, threshold = await loading
        pipeline = Pipeline(embedder, galleries, threshold=None if threshold is None else threshold.score)
        refreshing = asyncio.create_task(_keep_fresh(pipeline))
        calls.pipeline = pipeline
        await _tell(checks, serving=True)
        on_ready(Ready(address, pipeline))
        await stopping
        await checks.enter_graceful_shutdown()
        await calls.drain(grace=settings.grace)
        await server.stop(_LAST_WORDS_SECONDS)
        refreshing.cancel()
        await asyncio.gather(refreshing, return_exceptions=True)
        await pipeline.close()
    finally:
        await server.stop(0)


def _in_background(work: Callable[[], _Result]) -> "asyncio.Future[_Result]":
    """Work on a thread that nobody waits for when the process is to end: loading a large gallery takes minutes."""
    done: concurrent.futures.Future[_Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # whoever waits gets it
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return asyncio.wrap_future(done)


async def _start(listen: str, calls: Calls, checks: health_aio.HealthServicer) -> tuple[grpc.aio.Server, str]:
    # Without so_reuseport 0 two servers would share a port in silence.
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            # A caller whose machine is gone holds nothing for longer; gRPC would take two hours to notice.
            ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
            # Above 1,000 waiting calls gRPC cancels some at random, without a word: admission is the pipeline's.
            ("grpc.server.max_pending_requests", _UNLIMITED),
            ("grpc.server.max_pending_requests_hard_limit", _UNLIMITED),
        ]
    )
    server.add_generic_rpc_handlers(handlers(calls))
    add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(
        (SERVICE, GALLERY_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    await _tell(checks, serving=False)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ServerError(f"{listen} cannot be listened on: is the port in use?") from error
    await server.start()
    return server, f"{listen.rpartition(':')[0]}:{port}"


def _check_address(listen: str) -> None:
    # gRPC takes 127.0.0.1:99999 for another port, and listens there.
    host, _, port = listen.rpartition(":")
    if not (host and listen.isascii() and port.isdigit() and int(port) < 2**16) or host.startswith("unix"):
        raise ServerError(f"--listen must be host:port with a port up to 65535, got {listen!r}")


async def _tell(checks: health_aio.HealthServicer, *, serving: bool) -> None:
    statuses = health_pb2.HealthCheckResponse
    status = statuses.SERVING if serving else statuses.NOT_SERVING
    for name in (health.OVERALL_HEALTH, SERVICE, GALLERY_SERVICE):
        await checks.set(name, status)


def _load(settings: Settings) -> tuple[Embedder, dict[str, Gallery], Threshold | None]:
    embedder = open_embedder(settings.model, precision=settings.precision, device=settings.device)
    if embedder.unverified:
        _logger.warning(
            "the model runs unverified: %s was not held to fp32 on data (reid-export --verify)", embedder.engine
        )
    identity = embedder.contract.identity
    threshold = None if settings.threshold is None else read_threshold(settings.threshold, identity=identity)
    galleries: dict[str, Gallery] = {}
    for folder in settings.galleries:
        name = folder.absolute().name.removesuffix(".gallery")
        if name in galleries:
            raise GalleryError(f"two galleries are named {name!r}: rename a folder")
        opened = open_gallery(
            folder,
            identity=identity,
            kind=settings.index,
            device=settings.index_device,
            max_memory=settings.max_memory,
        )
        galleries[name] = opened
        if opened.origin.engine != embedder.engine:
            _logger.warning(
                "gallery %s was embedded by %s, queries are by %s: scores differ a little from those of one engine",
                name,
                opened.origin.engine,
                embedder.engine,
            )
        for damage in opened.snapshot.damaged[:_NAMED_DAMAGES]:
            _logger.warning("gallery %s serves without entry %r: %s (reid-index verify)", name, damage.id, damage.fault)
    return embedder, galleries, threshold


async def _keep_fresh(pipeline: Pipeline) -> None:
    told = ""
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        try:
            await pipeline.refresh()
            told = ""
        except Exception as error:  # noqa: BLE001  # whatever it is, serving goes on
            if str(error) != told:
                _logger.error("a gallery cannot be refreshed, its last state goes on being served: %s", error)
            told = str(error)
