"""Reloading in one process: what takes the place of what, what stays, and what is refused."""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reidserve.datasets import read_crops
from reidserve.embed import Embedder, open_embedder
from reidserve.errors import GalleryLockedError, GenerationGoneError, NotServingError, ReloadError
from reidserve.index import build_gallery, open_gallery
from reidserve.index.threshold import Threshold, write_threshold
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.assembly import Assembly
from reidserve.server.call import ANYONE, Call
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.audit import Audit
from reidserve.server.loading import load
from reidserve.server.queries.pipeline import Question
from reidserve.server.reloading import Reloading
from reidserve.server.settings import Settings
from reidserve.server.telemetry.telemetry import Telemetry
from reidserve.server.wire.gallery import METHODS as GALLERY_METHODS

SOUGHT = "0003_c1s1_000000_00.png"
ANY_CALL = Call("any", "1", ANYONE, math.inf)


@pytest.fixture(scope="session")
def other_embedder(other_model: Path) -> Embedder:
    return open_embedder(other_model)


@pytest.fixture(scope="session")
def other_gallery(tmp_path_factory: pytest.TempPathFactory, crops: Path, other_embedder: Embedder) -> Path:
    """A gallery of `crops` by `other_model`."""
    out = tmp_path_factory.mktemp("galleries") / "other.gallery"
    build_gallery(read_crops(crops), crops, out, other_embedder)
    return out


@dataclass
class Running:
    """A deployment that can be reloaded."""

    deployment: Deployment
    settings: Settings
    audit: Audit
    reloading: Reloading

    async def reload(self, model: str = "", **galleries: str) -> reid_pb2.ReloadResponse:
        """As the service calls it: with what is lent to the call."""
        request = reid_pb2.ReloadRequest(model=model, galleries=galleries)
        with self.deployment.lent() as served:
            return await self.reloading.reload(served, request, ANY_CALL)

    @property
    def now(self) -> Served:
        assert self.deployment.served is not None
        return self.deployment.served


@pytest.fixture
def settings(tmp_path: Path, model: Path, gallery: Path, other_model: Path, other_gallery: Path) -> Settings:
    models, galleries = tmp_path / "models", tmp_path / "galleries"
    shutil.copytree(model, models / "first")
    shutil.copytree(model, models / "again")
    shutil.copytree(other_model, models / "other")
    shutil.copytree(gallery, galleries / "crops.gallery")
    shutil.copytree(other_gallery, galleries / "crops-other.gallery")
    return Settings(
        model=models / "first",
        galleries=(galleries / "crops.gallery",),
        models_root=models,
        galleries_root=galleries,
        audit=tmp_path / "audit.log",
    )


async def start(settings: Settings) -> Running:
    deployment, audit = Deployment(), Audit(settings.audit)
    assemble = Assembly(settings, Telemetry(), audit)
    await deployment.replace(await assemble(load(settings), None))
    return Running(deployment, settings, audit, Reloading(deployment, assemble, settings, audit))


@pytest.fixture
async def running(settings: Settings) -> AsyncIterator[Running]:
    started = await start(settings)
    yield started
    await started.deployment.close()
    started.audit.close()


async def answer_of(served: Served, crops: Path) -> tuple[str, list[tuple[str, float]]]:
    """The identity of the model that answers, and its hits."""
    answer = await served.pipeline.search((crops / SOUGHT).read_bytes(), Question(top_k=5))
    return served.pipeline.embedder.contract.identity, [(hit.entry.id, hit.score) for hit in answer.hits]


async def test_the_same_model_read_again_keeps_galleries_and_what_was_answered_to_whom(running: Running, crops: Path):
    before, answer = running.now, await answer_of(running.now, crops)
    response = await running.reload("again")
    after = running.now
    assert after.pipeline is not before.pipeline
    assert after.pipeline.galleries["crops"] is before.pipeline.galleries["crops"]
    for one in ("receipts", "turn"):
        assert getattr(after.writers["crops"], one) is getattr(before.writers["crops"], one)
    assert (before.reloads, after.reloads) == (0, 1)
    assert response.before == response.after
    assert response.after.identity == before.pipeline.embedder.contract.identity
    assert response.seconds > 0
    assert await running.deployment.settle(5)
    assert await answer_of(running.now, crops) == answer
    # The gallery was not closed: it is still ours to write.
    with pytest.raises(GalleryLockedError):
        open_gallery(running.settings.galleries[0], write=True)


async def test_a_model_of_another_identity_comes_with_its_galleries(
    running: Running, crops: Path, other_embedder: Embedder
):
    before = await answer_of(running.now, crops)
    response = await running.reload("other", crops="crops-other.gallery")
    assert (response.before.identity, response.after.identity) == (before[0], other_embedder.contract.identity)
    identity, hits = await answer_of(running.now, crops)
    assert identity == other_embedder.contract.identity
    assert hits[0][0] == SOUGHT
    assert hits != before[1]
    assert await running.deployment.settle(5)
    # What was replaced is closed, and another process may write to it.
    open_gallery(running.settings.galleries[0], write=True).close()
    back = await running.reload("first", crops="crops.gallery")
    assert back.after.identity == before[0]
    assert await answer_of(running.now, crops) == before
    assert running.now.reloads == 2


async def list_page(served: Served, token: str) -> reid_pb2.ListEntriesResponse:
    (method,) = [method for method in GALLERY_METHODS if method.name == "ListEntries"]
    request = reid_pb2.ListEntriesRequest(page_size=15, page_token=token)
    listed: reid_pb2.ListEntriesResponse = await method.answer(served, request, ANY_CALL)
    return listed


async def test_a_listing_goes_on_behind_a_reload_of_the_same_model_and_ends_with_its_gallery(running: Running):
    first = await list_page(running.now, "")
    # The gallery changes, so that only what was kept can be listed on.
    await running.now.writers["crops"].delete([first.entries[3].entry_id, SOUGHT], ANY_CALL)
    await running.reload("again")
    second = await list_page(running.now, first.next_page_token)
    third = await list_page(running.now, second.next_page_token)
    listed = [entry.entry_id for page in (first, second, third) for entry in page.entries]
    assert len(listed) == len(set(listed)) == 40
    assert third.next_page_token == ""
    await running.reload("other", crops="crops-other.gallery")
    with pytest.raises(GenerationGoneError, match="page_token is of a gallery of model .* begin again"):
        await list_page(running.now, second.next_page_token)


async def test_a_call_under_way_ends_with_what_it_began_with(running: Running, crops: Path):
    before = await answer_of(running.now, crops)
    with running.deployment.lent() as lent:
        await running.reload("other", crops="crops-other.gallery")
        assert not await running.deployment.settle(0.05)
        assert await answer_of(lent, crops) == before
        assert await answer_of(running.now, crops) != before
        with pytest.raises(GalleryLockedError):
            open_gallery(running.settings.galleries[0], write=True)
    assert await running.deployment.settle(5)
    open_gallery(running.settings.galleries[0], write=True).close()


async def test_a_gallery_may_change_places_while_the_model_stays(running: Running, gallery: Path, crops: Path):
    assert running.settings.galleries_root is not None
    shutil.copytree(gallery, running.settings.galleries_root / "copy.gallery")
    before = running.now.pipeline.galleries["crops"]
    answer = await answer_of(running.now, crops)
    await running.reload(crops="copy.gallery")
    assert running.now.pipeline.galleries["crops"] is not before
    assert await answer_of(running.now, crops) == answer
    # Named again, it stays what it is.
    copy = running.now.pipeline.galleries["crops"]
    await running.reload(crops="copy.gallery")
    assert running.now.pipeline.galleries["crops"] is copy


@pytest.mark.parametrize(
    ("wanted", "galleries", "message"),
    [
        ("other", {}, "gallery crops holds embeddings of model"),
        ("other", {"crops": "crops.gallery"}, "holds embeddings of model"),
        ("first", {"crops": "crops-other.gallery"}, "holds embeddings of model"),
        ("first", {"mall": "crops.gallery"}, "there is no gallery mall here"),
        ("none", {}, "there is no model 'none' below the server's folder of models"),
        ("", {"crops": "none.gallery"}, "there is no gallery 'none.gallery' below"),
    ],
)
async def test_what_does_not_fit_changes_nothing(
    running: Running, crops: Path, wanted: str, galleries: dict[str, str], message: str
):
    before, answer = running.now, await answer_of(running.now, crops)
    with pytest.raises(ReloadError, match=message) as refusal:
        await running.reload(wanted, **galleries)
    assert str(refusal.value).endswith("; nothing was changed")
    assert running.now is before
    assert await answer_of(running.now, crops) == answer
    await running.reload("again")
    assert running.now.reloads == 1


async def test_another_identity_is_refused_by_both_names(
    running: Running, embedder: Embedder, other_embedder: Embedder
):
    with pytest.raises(ReloadError) as refusal:
        await running.reload("other")
    for one in (embedder, other_embedder):
        assert one.contract.identity[:12] in str(refusal.value)


@pytest.mark.parametrize("name", ["../outside", "/etc", "out", ".", "again/..", "a\0b", "../models/again"])
async def test_a_model_outside_its_folder_is_not_there(running: Running, tmp_path: Path, model: Path, name: str):
    assert running.settings.models_root is not None
    shutil.copytree(model, tmp_path / "outside")
    (running.settings.models_root / "out").symlink_to(tmp_path / "outside")
    with pytest.raises(ReloadError, match="there is no model .* below the server's folder of models"):
        await running.reload(name)


async def test_without_folders_to_choose_from_the_first_model_can_be_read_again_and_no_other(settings: Settings):
    running = await start(dataclasses.replace(settings, models_root=None, galleries_root=None))
    try:
        with pytest.raises(ReloadError, match="start it with --models-root"):
            await running.reload("again")
        with pytest.raises(ReloadError, match="start it with --galleries-root"):
            await running.reload(crops="crops.gallery")
        await running.reload()
        assert running.now.reloads == 1
    finally:
        await running.deployment.close()
        running.audit.close()


async def test_a_model_that_computes_something_else_is_refused(running: Running, crops: Path):
    assert running.settings.models_root is not None
    graph = running.settings.models_root / "again" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(ReloadError, match="was changed after export"):
        await running.reload("again")
    assert running.now.reloads == 0


def calibrate(identity: str, path: Path, score: float) -> None:
    threshold = Threshold(
        identity=identity,
        score=score,
        criterion="search",
        rate=0.01,
        dataset="crops",
        genuine=20,
        impostors=20,
        measured=0.5,
    )
    write_threshold(threshold, path)


async def test_the_threshold_is_read_again_and_must_be_the_models(
    settings: Settings, tmp_path: Path, embedder: Embedder, other_embedder: Embedder
):
    path = tmp_path / "threshold.json"
    calibrate(embedder.contract.identity, path, 0.5)
    running = await start(dataclasses.replace(settings, threshold=path))
    try:
        with pytest.raises(ReloadError, match="was calibrated with model"):
            await running.reload("other", crops="crops-other.gallery")
        assert running.now.pipeline.threshold == 0.5
        # What was opened for it is closed again.
        open_gallery(tmp_path / "galleries" / "crops-other.gallery", write=True).close()
        calibrate(other_embedder.contract.identity, path, 0.75)
        await running.reload("other", crops="crops-other.gallery")
        assert running.now.pipeline.threshold == 0.75
    finally:
        await running.deployment.close()
        running.audit.close()


@pytest.fixture
def halted(settings: Settings) -> Path:
    """The model "again" loads until its canaries are written into this pipe."""
    assert settings.models_root is not None
    pipe = settings.models_root / "again" / "canaries.json"
    pipe.unlink()
    os.mkfifo(pipe)
    return pipe


async def test_one_reload_at_a_time(running: Running, halted: Path, model: Path):
    first = asyncio.create_task(running.reload("again"))
    await asyncio.sleep(0.05)
    with pytest.raises(ReloadError, match="another reload is under way"):
        await running.reload()
    await asyncio.to_thread(halted.write_bytes, (model / "canaries.json").read_bytes())
    await first
    assert running.now.reloads == 1


async def test_a_reload_that_nobody_waits_for_changes_nothing(
    running: Running, halted: Path, model: Path, other_embedder: Embedder
):
    abandoned = asyncio.create_task(running.reload("again"))
    await asyncio.sleep(0.05)
    abandoned.cancel()
    await asyncio.gather(abandoned, return_exceptions=True)
    with pytest.raises(ReloadError, match="another reload is under way"):
        await running.reload()
    await asyncio.to_thread(halted.write_bytes, (model / "canaries.json").read_bytes())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and running.now.reloads == 0:
        with contextlib.suppress(ReloadError):
            await running.reload("other", crops="crops-other.gallery")
        await asyncio.sleep(0.02)
    assert running.now.reloads == 1
    assert running.now.pipeline.embedder.contract.identity == other_embedder.contract.identity


async def test_each_reload_is_written_down_with_its_end(running: Running, tmp_path: Path, other_embedder: Embedder):
    with pytest.raises(ReloadError):
        await running.reload("other")
    await running.reload("other", crops="crops-other.gallery")
    refused, done = map(json.loads, (tmp_path / "audit.log").read_bytes().splitlines())
    assert (refused["what"], refused["result"], refused["model"]) == ("reload", "RELOAD_REFUSED", "other")
    assert (done["what"], done["result"], done["after"]) == ("reload", "done", other_embedder.contract.identity)


async def test_a_server_that_leaves_answers_until_it_drains_and_takes_nothing_new(running: Running, crops: Path):
    deployment = running.deployment
    deployment.leave()
    assert not deployment.is_serving
    with pytest.raises(ReloadError, match="the server is ending"):
        await running.reload("again")
    with deployment.lent() as served:
        answer = await answer_of(served, crops)
        draining = asyncio.create_task(deployment.drain(grace=10))
        await asyncio.sleep(0.05)
        assert not draining.done()
        with pytest.raises(NotServingError), deployment.lent():
            pass
        assert await answer_of(served, crops) == answer
    await draining
    await deployment.close()
    open_gallery(running.settings.galleries[0], write=True).close()
