"""Health: what grpc.health.v1 says of each service, which is what is so."""

import asyncio

from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health import aio as health_aio

from reidserve.server.deployment import Deployment
from reidserve.server.wire.methods import GALLERY_SERVICE, MODEL_SERVICE, SERVICE

_LOOK_SECONDS = 0.5


class Health:
    """Watches a deployment, and tells.

    An engine that is stuck, or away, takes down the server as a whole and its searches. Galleries can be listed still,
    and another model be put in its place. Where all galleries are with servers that are away, they are down too, until
    one is back.

    Attributes:
        servicer: of grpc.health.v1, to be added to a server.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.servicer = health_aio.HealthServicer()
        self._deployment = deployment
        self._told: dict[str, bool] = {}

    async def tell(self) -> None:
        """Tell how it is now."""
        serving = self._deployment.is_serving
        galleries = serving and not self._deployment.is_cut_off
        searching = galleries and not self._deployment.is_stuck
        facts = {
            health.OVERALL_HEALTH: searching,
            SERVICE: searching,
            GALLERY_SERVICE: galleries,
            MODEL_SERVICE: serving,
        }
        statuses = health_pb2.HealthCheckResponse
        for name, holds in facts.items():
            if self._told.get(name) is not holds:
                await self.servicer.set(name, statuses.SERVING if holds else statuses.NOT_SERVING)
        self._told = facts

    async def watch(self) -> None:
        """Tell whenever it changes, until cancelled."""
        while True:
            await self.tell()
            await asyncio.sleep(_LOOK_SECONDS)
