"""The calls that the console brought: an image as the network sees it, what the model does, and entries by a filter."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from reidserve.errors import ImageError, OverloadedError, PermissionDeniedError
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Arrival
from reidserve.server.queries.limits import Limits
from reidserve.server.queries.pipeline import Pipeline
from tests.conftest import HEIGHT, WIDTH
from tests.test_http import ENTRY, TABLE, folder, over_grpc, server, serving  # noqa: F401  # fixtures
from tests.test_keys import add


async def test_a_preview_is_what_the_network_is_given(server, crops, embedder):  # noqa: F811
    data = (crops / ENTRY).read_bytes()
    reply = await over_grpc(server, "Preview", reid_pb2.PreviewRequest(image=data))
    pixels = np.asarray(Image.open(io.BytesIO(reply.png)))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(pixels, embedder.prepare(data))
    answer = await server.client.post("/v1/preview", content=data, headers={"content-type": "image/png"})
    assert base64.b64decode(answer.json()["png"]) == reply.png


async def test_a_preview_is_refused_as_a_search_is(embedder, folder, tmp_path):  # noqa: F811
    keys = tmp_path / "keys.json"
    token = add(keys, "writer", scopes={"write": ("*",)})
    async with serving(embedder, folder, keys=keys) as running:
        method = next(method for method in TABLE if method.name == "Preview")
        with pytest.raises(PermissionDeniedError):
            await running.calls.answer(method, b"", Arrival({"authorization": f"Bearer {token}"}, "test", "grpc"))
    pipeline = Pipeline(embedder, {}, limits=Limits(images_in_flight=1, images_per_call=1))
    with pytest.raises(ImageError):
        await pipeline.preview(b"no image")
    with pipeline._queries.admitted(1), pytest.raises(OverloadedError):
        await pipeline.preview(b"no image")
    await pipeline.close()


async def test_what_the_model_does_is_told(server, crops):  # noqa: F811
    idle = await over_grpc(server, "GetLive", reid_pb2.GetLiveRequest())
    assert (idle.calls_per_second, idle.images_per_second, idle.waiting, idle.in_flight) == (0, 0, 0, 0)
    assert not idle.HasField("latency_p50")
    assert not idle.HasField("batch_size")
    for _ in range(3):
        await over_grpc(server, "Search", reid_pb2.SearchRequest(image=(crops / ENTRY).read_bytes()))
    await over_grpc(server, "Search", reid_pb2.SearchRequest(entry_id=ENTRY))
    code, live = await server.ask("GET", "/v1/live")
    assert code == 200
    assert live["callsPerSecond"] * live["window"] == pytest.approx(4)
    assert live["imagesPerSecond"] * live["window"] == pytest.approx(3)
    assert live["batchSize"] == 1
    assert 0 < float(live["latencyP50"].rstrip("s")) <= float(live["latencyP99"].rstrip("s"))
    for name in ("Search", "Embed"):
        with pytest.raises(ImageError):
            await over_grpc(server, name, getattr(reid_pb2, f"{name}Request")(image=b"no image"))
    later = await over_grpc(server, "GetLive", reid_pb2.GetLiveRequest())
    assert later.calls_per_second * later.window <= 4.001


async def listed(running, **asked) -> tuple[list[str], int]:
    """The ids that ListEntries gives, and the number of pages."""
    ids, pages = [], 0
    while True:
        code, answer = await running.ask("POST", "/reid.v1.GalleryService/ListEntries", json=asked)
        assert code == 200, answer
        ids += [entry["entryId"] for entry in answer["entries"]]
        pages += 1
        if not answer["nextPageToken"]:
            return ids, pages
        asked["pageToken"] = answer["nextPageToken"]


async def test_entries_are_listed_as_far_as_a_filter_lets_them_through(server, monkeypatch):  # noqa: F811
    every, _ = await listed(server)
    second = [name for name in every if "_c2" in name]
    assert (len(every), len(second)) == (40, 20)
    chosen = {"camids": {"anyOf": ["2"]}}
    assert await listed(server, filter=chosen) == (second, 1)
    assert await listed(server, filter=chosen, pageSize=5) == (second, 4)
    assert await listed(server, filter=chosen, pageSize=7) == (second, 3)
    monkeypatch.setattr("reidserve.server.wire.gallery.FILTERED", 8)
    assert await listed(server, filter=chosen) == (second, 5)
    assert await listed(server, filter={"pids": {"anyOf": ["nobody"]}}) == ([], 5)
    code, answer = await server.ask("GET", "/v1/galleries/shop/entries?filter.exclude_camids=1&page_size=3")
    assert (code, [entry["camid"] for entry in answer["entries"]]) == (200, ["2", "2", "2"])
    assert json.dumps(answer)


async def test_a_page_of_another_site_changes_nothing(server):  # noqa: F811
    path = f"/v1/galleries/shop/entries:delete?entry_ids={ENTRY}"
    for site in ("cross-site", "same-site"):
        code, answer = await server.ask("POST", path, headers={"sec-fetch-site": site})
        assert (code, answer["reason"]) == (403, "PERMISSION_DENIED")
    # It is not given the answer of what it may ask for.
    answer = await server.client.get(f"/v1/galleries/shop/entries/{ENTRY}", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    code, answer = await server.ask("POST", path, headers={"sec-fetch-site": "same-origin"})
    assert (code, answer["deleted"]) == (200, 1)
