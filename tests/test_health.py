"""What health says, held against what is so: loading, serving, an engine that is stuck, the end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from reidserve.embed import Embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import EngineStuckError, NotServingError
from reidserve.index import Gallery, open_gallery
from reidserve.server.deployment import Deployment, Served
from reidserve.server.health import Health
from reidserve.server.queries.pipeline import Limits, Pipeline, Question
from reidserve.server.wire.methods import GALLERY_SERVICE, MODEL_SERVICE, SERVICE
from tests.test_batcher import Gate

IMAGE = "0001_c1s1_000000_00.png"
EVERY = ("", SERVICE, GALLERY_SERVICE, MODEL_SERVICE)


@pytest.fixture
def gate(model: Path) -> Gate:
    return Gate(OnnxSession((model / MODEL_FILE).read_bytes()))


@pytest.fixture
async def deployment(gate: Gate) -> AsyncIterator[Deployment]:
    lending = Deployment()
    yield lending
    gate.opened.set()
    await lending.close()


async def serving_services(health: Health) -> set[str]:
    """The services that health says are serving."""
    await health.tell()
    context: Any = None  # which it does not look at
    said = {name: await health.servicer.Check(health_pb2.HealthCheckRequest(service=name), context) for name in EVERY}
    return {name for name, one in said.items() if one.status == health_pb2.HealthCheckResponse.SERVING}


def served(model: Path, gallery: Gallery, gate: Gate) -> Served:
    embedder = Embedder(read_artifact(model).contract, gate)
    return Served(Pipeline(embedder, {"crops": gallery}, limits=Limits(stuck_seconds=0.1)), {}, 0)


async def test_health_says_what_is_so_from_loading_to_the_end(
    deployment: Deployment, gate: Gate, model: Path, gallery: Path, crops: Path
):
    health = Health(deployment)
    assert await serving_services(health) == set()
    opened = open_gallery(gallery)
    first = served(model, opened, gate)
    await deployment.replace(first)
    assert await serving_services(health) == set(EVERY)

    with deployment.lent() as lent, pytest.raises(EngineStuckError):
        await lent.pipeline.search((crops / IMAGE).read_bytes(), Question())
    # Galleries can be listed still, and another model be put in its place.
    assert await serving_services(health) == {GALLERY_SERVICE, MODEL_SERVICE}

    working = Gate(OnnxSession((model / MODEL_FILE).read_bytes()))
    working.opened.set()
    await deployment.replace(served(model, opened, working))
    assert await deployment.settle(5)
    assert await serving_services(health) == set(EVERY)
    with deployment.lent() as lent:
        answer = await lent.pipeline.search((crops / IMAGE).read_bytes(), Question(top_k=1))
    assert [hit.entry.id for hit in answer.hits] == [IMAGE]

    deployment.leave()
    assert await serving_services(health) == set()
    with deployment.lent():
        pass
    await deployment.drain(grace=1)
    with pytest.raises(NotServingError), deployment.lent():
        pass


async def test_an_engine_that_comes_back_serves_again(
    deployment: Deployment, gate: Gate, model: Path, gallery: Path, crops: Path
):
    health = Health(deployment)
    await deployment.replace(served(model, open_gallery(gallery), gate))
    with deployment.lent() as lent, pytest.raises(EngineStuckError):
        await lent.pipeline.search((crops / IMAGE).read_bytes(), Question())
    assert SERVICE not in await serving_services(health)
    gate.opened.set()
    async with asyncio.timeout(5):
        while deployment.is_stuck:
            await asyncio.sleep(0.01)
    assert await serving_services(health) == set(EVERY)


async def test_a_drain_waits_no_longer_than_its_grace(
    deployment: Deployment, gate: Gate, model: Path, gallery: Path, crops: Path
):
    await deployment.replace(served(model, open_gallery(gallery), gate))
    with deployment.lent():
        async with asyncio.timeout(2):
            await deployment.drain(grace=0.1)
        assert deployment.under_way == 1
