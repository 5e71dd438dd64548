"""ModelService: what serves, and another in its place."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from reidserve.embed import Embedder, Flavour, Plan
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Call
from reidserve.server.deployment import Served
from reidserve.server.wire.messages import duration_message, model_message
from reidserve.server.wire.methods import MODEL_SERVICE, Method

Reload = Callable[[Served, reid_pb2.ReloadRequest, Call], Awaitable[reid_pb2.ReloadResponse]]


def methods(reload: Reload) -> Sequence[Method]:
    """The methods of ModelService, one of which is the server's own."""
    return (
        Method(
            *(MODEL_SERVICE, "GetModel", reid_pb2.GetModelRequest, reid_pb2.GetModelResponse),
            *("search", "unary", _get_model),
        ),
        Method(
            *(MODEL_SERVICE, "GetLive", reid_pb2.GetLiveRequest, reid_pb2.GetLiveResponse),
            *("search", "unary", _get_live),
        ),
        Method(MODEL_SERVICE, "Reload", reid_pb2.ReloadRequest, reid_pb2.ReloadResponse, "admin", "unary", reload),
    )


async def _get_model(served: Served, request: reid_pb2.GetModelRequest, call: Call) -> reid_pb2.GetModelResponse:
    embedder = served.pipeline.embedder
    contract = embedder.contract
    return reid_pb2.GetModelResponse(
        model=model_message(served.pipeline),
        height=contract.height,
        width=contract.width,
        dim=contract.dim,
        backbone=contract.network.backbone or "",
        threshold=served.pipeline.threshold,
        parity_json=parity_of(embedder),
        reloads=served.reloads,
    )


async def _get_live(served: Served, request: reid_pb2.GetLiveRequest, call: Call) -> reid_pb2.GetLiveResponse:
    pipeline = served.pipeline
    figures = pipeline.figures
    return reid_pb2.GetLiveResponse(
        window=figures.window,
        calls_per_second=figures.calls,
        rejected_per_second=figures.rejected,
        images_per_second=figures.images,
        batch_size=figures.batch_size,
        latency_p50=None if figures.p50 is None else duration_message(figures.p50),
        latency_p99=None if figures.p99 is None else duration_message(figures.p99),
        in_flight=pipeline.in_flight,
        waiting=pipeline.waiting,
    )


def parity_of(embedder: Embedder) -> str:
    """What the gate found of the flavour or plan that runs, which the contract has from parity.json."""
    made: tuple[Flavour | Plan, ...] = (*embedder.contract.flavours.values(), *embedder.contract.plans.values())
    found = [check for each in made for check in each.checks if check.engine == embedder.engine]
    return msgspec.json.encode(found[-1]).decode() if found else ""
