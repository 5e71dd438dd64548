"""Reloading: another model, or the same one read again, takes the place of the one that serves, or nothing changes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from reidserve.embed import ModelPlace, ModelUrl
from reidserve.errors import ReidError, ReloadError
from reidserve.index.gallery import check_origin
from reidserve.index.place import GalleryUrl, Place
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Call
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.audit import Audit
from reidserve.server.loading import Loaded, in_background, load_galleries, load_model, load_threshold
from reidserve.server.settings import Settings
from reidserve.server.wire.messages import model_message

SETTLE_SECONDS = 10.0
"""How long a reload waits for the calls that the one before it left with what it replaced."""

Assemble = Callable[[Loaded, Served | None], Awaitable[Served]]
"""What is loaded, and what serves now, to what may be served."""


class Reloading:
    """Puts another model in the place of the one that serves, one at a time.

    It is loaded, warmed and checked beside the one that serves, on a thread of its own. A failure changes nothing, and
    neither does a reload whose caller does not wait for its end. At most two models are in memory.
    """

    def __init__(self, deployment: Deployment, assemble: Assemble, settings: Settings, audit: Audit) -> None:
        self._deployment = deployment
        self._assemble = assemble
        self._settings = settings
        self._audit = audit
        self._loading: asyncio.Task[Loaded] | None = None

    async def reload(self, served: Served, request: reid_pb2.ReloadRequest, call: Call) -> reid_pb2.ReloadResponse:
        """Serve the model that is asked for, with galleries of its identity, once all of it is ready.

        Raises:
            ReloadError: what is asked for cannot be served, or another reload is under way; the message says why.
        """
        started = time.monotonic()
        try:
            after = await self._replace(served, request)
        except ReidError as error:
            self._audit.record(call, "reload", None, model=request.model, result=ReloadError.reason, why=str(error))
            raise ReloadError(f"{_without_folders(str(error), self._settings)}; nothing was changed") from error
        response = reid_pb2.ReloadResponse(
            before=model_message(served.pipeline),
            after=model_message(after.pipeline),
            seconds=time.monotonic() - started,
        )
        identities = {"before": response.before.identity, "after": response.after.identity}
        self._audit.record(call, "reload", None, model=request.model, result="done", **identities)
        return response

    async def _replace(self, served: Served, request: reid_pb2.ReloadRequest) -> Served:
        if self._loading is not None and not self._loading.done():
            raise ReloadError("another reload is under way: wait for its end, and ask GetModel what serves then")
        model, folders = self._chosen(served, request)
        self._loading = asyncio.create_task(self._load(served, model, folders))
        try:
            loaded = await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            self._loading.add_done_callback(lambda loading: _forget(loading, served))
            raise
        try:
            if not self._deployment.is_serving:
                raise ReloadError("the server is ending")
            after = await self._assemble(loaded, served)
            await self._deployment.replace(after)
        except BaseException:
            _drop(loaded, served)
            raise
        return after

    def _chosen(self, served: Served, request: reid_pb2.ReloadRequest) -> tuple[ModelPlace, Mapping[str, Path]]:
        """The place of the model, and the folder of each gallery that is named."""
        settings, names = self._settings, served.pipeline.galleries
        if strangers := sorted(set(request.galleries) - set(names)):
            raise ReloadError(
                f"there is no gallery {', '.join(strangers)} here whose place another could take, there is "
                f"{', '.join(sorted(names))}"
            )
        for name in request.galleries:
            if isinstance(place := names[name].place, GalleryUrl):
                raise ReloadError(
                    f"gallery {name!r} is at {place}, which holds it for each of its models: name none in its place"
                )
        folders = {
            name: _below(settings.galleries_root, folder, "gallery", "--galleries-root")
            for name, folder in request.galleries.items()
        }
        if not request.model:
            return settings.model, folders
        return _below(settings.models_root, request.model, "model", "--models-root"), folders

    async def _load(self, served: Served, model: ModelPlace, folders: Mapping[str, Path]) -> Loaded:
        # What was replaced last may have a gallery open that is wanted again, and is a second model in memory.
        if not await self._deployment.settle(SETTLE_SECONDS):
            raise ReloadError(
                f"calls of the model that was replaced last have not ended within {SETTLE_SECONDS:g} s: try again later"
            )
        return await in_background(lambda: _load_beside(served, model, folders, self._settings))


def _load_beside(served: Served, model: ModelPlace, folders: Mapping[str, Path], settings: Settings) -> Loaded:
    """A model and galleries of its identity: of those that serve, the ones that no folder is named for."""
    serving = served.pipeline.galleries
    embedder = load_model(model, settings)
    before, identity = served.pipeline.embedder.contract.identity, embedder.contract.identity
    elsewhere = {name: gallery.place for name, gallery in serving.items() if isinstance(gallery.place, GalleryUrl)}
    if identity != before and (missing := sorted(set(serving) - set(folders) - set(elsewhere))):
        raise ReloadError(
            f"{model.name!r} is model {identity[:12]}, and gallery {', '.join(missing)} holds embeddings of "
            f"model {before[:12]}: name a folder that was rebuilt for it (reid-index rebuild)"
        )
    threshold = load_threshold(embedder, settings)
    stays = set()
    for name, folder in folders.items():
        for other, gallery in serving.items():
            if isinstance(gallery.place, Path) and gallery.place.samefile(folder):
                if other != name:
                    raise ReloadError(f"{folder.name!r} serves as gallery {other!r}, it cannot be {name!r} too")
                check_origin(folder, gallery.origin, identity=identity)
                stays.add(name)
    places: dict[str, Place] = {name: folder for name, folder in folders.items() if name not in stays}
    if identity != before:
        # Each model's entries lie beside each other there, and are found by its identity.
        places |= elsewhere
    opened = load_galleries(places, embedder, settings)
    return Loaded(embedder, {**serving, **opened}, threshold)


def _below(root: Path | None, name: str, what: str, flag: str) -> Path:
    """The folder of this name below a root.

    Raises:
        ReloadError: there is none, or it lies elsewhere, through a link or "..": nobody learns what is there.
    """
    if root is None:
        raise ReloadError(f"this server has no folder to find another {what} in: start it with {flag}")
    try:
        found, whole = (root / name).resolve(strict=True), root.resolve(strict=True)
    except (OSError, ValueError):  # ValueError: a NUL character
        found = whole = root
    if whole not in found.parents or ".." in Path(name).parts:
        folder = "models" if what == "model" else "galleries"
        raise ReloadError(f"there is no {what} {name!r} below the server's folder of {folder}")
    return found


def _forget(loading: asyncio.Task[Loaded], served: Served) -> None:
    if not loading.cancelled() and loading.exception() is None:
        _drop(loading.result(), served)


def _drop(loaded: Loaded, served: Served) -> None:
    """Close what was opened in vain."""
    kept = {id(gallery) for gallery in served.pipeline.galleries.values()}
    for gallery in loaded.galleries.values():
        if id(gallery) not in kept:
            gallery.close()


def _without_folders(text: str, settings: Settings) -> str:
    """A text for a caller, to whom it is nothing where on the server's disk models and galleries are."""
    if isinstance(settings.model, ModelUrl):
        text = text.replace(str(settings.model), settings.model.name).replace(settings.model.address, "its server")
    for url in settings.galleries:
        if isinstance(url, GalleryUrl):
            text = text.replace(str(url), url.name)
    served = (place.parent for place in (settings.model, *settings.galleries) if isinstance(place, Path))
    for folder in (settings.models_root, settings.galleries_root, *served):
        if folder is not None:
            for spelled in (folder.absolute(), folder.resolve()):
                text = text.replace(f"{spelled}/", "")
    return text
