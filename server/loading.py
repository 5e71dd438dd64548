"""Loading: a model, checked and warm, and the galleries of its identity, all whole before any of it is served."""

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from reidserve.embed import Embedder, ModelPlace, open_embedder
from reidserve.errors import GalleryLockedError
from reidserve.index import Gallery, open_gallery
from reidserve.index.opening import publish
from reidserve.index.place import Place
from reidserve.index.threshold import read_threshold
from reidserve.server.settings import Settings, gallery_name

_NAMED_DAMAGES = 20

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What may be served.

    Attributes:
        embedder: the model, warm.
        galleries: of its identity, by name.
        threshold: the score from which on two images are said to be of one identity; None for none.
    """

    embedder: Embedder
    galleries: Mapping[str, Gallery]
    threshold: float | None


def load(settings: Settings) -> Loaded:
    """Load what a server was told to serve.

    Raises:
        ArtifactError, BackendUnavailableError, DeviceError, GalleryError, ThresholdError: it cannot be served.
    """
    embedder = load_model(settings.model, settings)
    threshold = load_threshold(embedder, settings)
    places = {gallery_name(place): place for place in settings.galleries}
    return Loaded(embedder, load_galleries(places, embedder, settings), threshold)


def load_model(place: ModelPlace, settings: Settings) -> Embedder:
    """Open a model, see that its canaries hold, and let it compute the smallest and the largest batch once.

    Raises:
        ArtifactError, DeviceError: it is not whole, computes something else here, or not on the device.
        BackendUnavailableError: another server computes it, and is away.
    """
    embedder = open_embedder(place, precision=settings.precision, device=settings.device)
    if embedder.unverified:
        _logger.warning(
            "the model runs unverified: %s was not held to fp32 on data (reid-export --verify)", embedder.engine
        )
    contract, noise = embedder.contract, np.random.default_rng(0)
    for size in (1, embedder.max_batch):
        embedder.embed_each(noise.integers(0, 256, (size, contract.height, contract.width, 3), dtype=np.uint8))
    return embedder


def load_threshold(embedder: Embedder, settings: Settings) -> float | None:
    """The calibrated threshold as its file says it now.

    Raises:
        ThresholdError: it does not read, or is another model's.
    """
    if settings.threshold is None:
        return None
    return read_threshold(settings.threshold, identity=embedder.contract.identity).score


def load_galleries(places: Mapping[str, Place], embedder: Embedder, settings: Settings) -> dict[str, Gallery]:
    """Open galleries for a model, all of them or none, and search each once.

    Raises:
        GalleryError: one cannot be read, or not be written where the server is to.
        GalleryModelError: one holds the embeddings of another model.
        BackendUnavailableError: what holds one does not answer.
    """
    with contextlib.ExitStack() as on_failure:
        galleries = {}
        for name, place in places.items():
            galleries[name] = opened = _open(place, embedder, settings)
            on_failure.callback(opened.close)
            _tell(name, opened, embedder)
            opened.snapshot.search(_any_query(embedder), top_k=1)
        for gallery in () if settings.read_only else galleries.values():
            publish(gallery)
        on_failure.pop_all()
    return galleries


def in_background(work: Callable[[], _Result]) -> "asyncio.Future[_Result]":
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


def _open(place: Place, embedder: Embedder, settings: Settings) -> Gallery:
    try:
        return open_gallery(
            place,
            identity=embedder.contract.identity,
            write=not settings.read_only,
            kind=settings.index,
            device=settings.index_device,
            max_memory=settings.max_memory,
        )
    except GalleryLockedError as error:
        raise GalleryLockedError(
            f"{error}: end that first, or give --read-only to serve what another process writes"
        ) from error


def _tell(name: str, opened: Gallery, embedder: Embedder) -> None:
    if opened.origin.engine != embedder.engine:
        _logger.warning(
            "gallery %s was embedded by %s, queries are by %s: scores differ a little from those of one engine",
            name,
            opened.origin.engine,
            embedder.engine,
        )
    for damage in opened.snapshot.damaged[:_NAMED_DAMAGES]:
        _logger.warning("gallery %s serves without entry %r: %s (reid-index verify)", name, damage.id, damage.fault)


def _any_query(embedder: Embedder) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.eye(1, embedder.contract.dim, dtype=np.float32)
