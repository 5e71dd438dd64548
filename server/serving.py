"""Serving: a server's life from a bound port through loading and answering to a drained stop."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from reidserve.errors import ConfigError
from reidserve.index.search.threads import undivided_products
from reidserve.server.assembly import Assembly
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.audit import Audit
from reidserve.server.guard.gate import Gate
from reidserve.server.guard.tls import Certificate, watch_certificate
from reidserve.server.guard.watched import Watched
from reidserve.server.health import Health
from reidserve.server.listening import listening
from reidserve.server.loading import in_background, load
from reidserve.server.reloading import Reloading
from reidserve.server.retention import Retention
from reidserve.server.settings import Settings
from reidserve.server.telemetry.telemetry import Telemetry, open_telemetry
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.methods import Method
from reidserve.server.wire.service import methods as methods_of

_REFRESH_SECONDS = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that answers.

    Attributes:
        address: where it listens for gRPC.
        http: where it listens for HTTP; None where it does not.
        served: what answers.
    """

    address: str
    http: str | None
    served: Served


async def serve(settings: Settings, *, on_ready: Callable[[Ready], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the calls under way and return; a second signal ends the process.

    The ports are bound first and health is NOT_SERVING until the model is warm, its canaries hold and the galleries
    are open.

    Raises:
        ServerError: an address cannot be listened on.
        ConfigError: a file that it was told to use cannot be.
        ArtifactError, DeviceError, GalleryError, ThresholdError: what was to be served cannot be.
    """
    deployment = Deployment()
    stop = _stopping(deployment)
    async with AsyncExitStack() as opened:
        opened.enter_context(undivided_products())
        audit = Audit(settings.audit)
        opened.callback(audit.close)
        telemetry = open_telemetry(metrics=settings.metrics, otlp=settings.otlp, ratio=settings.trace_ratio)
        opened.callback(telemetry.close)
        opened.push_async_callback(deployment.close)
        telemetry.watch(deployment)

        assemble = Assembly(settings, telemetry, audit)
        methods = methods_of(Reloading(deployment, assemble, settings, audit).reload)
        gate = Gate(settings.keys)
        calls = Calls(deployment, gate, telemetry, default_deadline=settings.deadline, audit=audit)
        health, certificate = Health(deployment), _certificate(settings)
        await health.tell()
        address = await opened.enter_async_context(listening(settings, calls, methods, health, gate, certificate))
        http = await opened.enter_async_context(
            _listening_http(settings, calls, deployment, telemetry, methods, certificate)
        )

        loading = in_background(lambda: load(settings))
        if not await _before(loading, stop):
            return
        served = await assemble(await loading, None)
        await deployment.replace(served)
        async with _running(health.watch()):
            async with _running(_keep_fresh(deployment)), _running(_retain(deployment, settings)):
                await health.tell()
                on_ready(Ready(address, http, served))
                await stop.wait()
            deployment.leave()
            await health.tell()
            await asyncio.sleep(settings.probe_period)
            await deployment.drain(grace=settings.grace)


def _stopping(deployment: Deployment) -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process at once."""
    stop = asyncio.Event()

    def heed() -> None:
        if not stop.is_set():
            stop.set()
            return
        # Whatever hangs is not waited for: what was acknowledged is on the disk.
        _logger.critical("stopped at once: %s calls under way were cut off", deployment.under_way)
        logging.shutdown()
        os._exit(1)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed)
    return stop


async def _before(work: "asyncio.Future[Any]", stop: asyncio.Event) -> bool:
    """Whether work was done before somebody stopped it."""
    stopping = asyncio.create_task(stop.wait())
    first: set[asyncio.Future[Any]] = {work, stopping}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return not stop.is_set()


def _certificate(settings: Settings) -> Watched[Certificate] | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return watch_certificate(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


@asynccontextmanager
async def _listening_http(
    settings: Settings,
    calls: Calls,
    deployment: Deployment,
    telemetry: Telemetry,
    methods: Sequence[Method],
    certificate: Watched[Certificate] | None,
) -> AsyncIterator[str | None]:
    """Answer HTTP where that was asked for; the block gets the address."""
    if settings.http is None:
        yield None
        return
    try:
        from reidserve.server.http.app import make_app
        from reidserve.server.http.listening import listening_http
    except ImportError as error:
        raise ConfigError(
            f"--http needs packages that are not installed ({error.name}): pip install 'reidserve[http]'"
        ) from error
    app = make_app(
        calls,
        telemetry,
        methods,
        ready=lambda: deployment.is_serving and not (deployment.is_stuck or deployment.is_cut_off),
        message_bytes=settings.message_bytes,
        described=settings.reflection,
    )
    async with listening_http(app, settings.http, certificate) as address:
        yield address


@asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Work in the background while the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _retain(deployment: Deployment, settings: Settings) -> None:
    """Remove what grows too old, where that was asked for."""
    if settings.retain is not None:
        await Retention(deployment, settings.retain).run()


async def _keep_fresh(deployment: Deployment) -> None:
    """Let galleries catch up with what other processes write."""
    told = ""
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        try:
            with deployment.lent() as served:
                await served.pipeline.refresh()
            told = ""
        except Exception as error:  # noqa: BLE001  # whatever it is, serving goes on
            if str(error) != told:
                _logger.error("a gallery cannot be refreshed, its last state goes on being served: %s", error)
            told = str(error)
