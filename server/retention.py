"""Retention: entries that have grown too old are removed, once an hour, to the last byte."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable

from reidserve.index import Filter, Snapshot
from reidserve.index.forgetting import MOST_SHARE, check_share
from reidserve.server.call import Call, Caller
from reidserve.server.deployment import Deployment
from reidserve.server.writes.writer import Writer

PASS_SECONDS = 3600.0
PIECE_ENTRIES = 1000
"""So many are removed together, and other writes come between."""

MOST_DRIFT = 86_400.0
"""If the clock was moved further than this since the last look, seconds, it is not believed alone."""

_CALLER = Caller("retention", {})

_logger = logging.getLogger(__name__)


class Retention:
    """Removes from each gallery that is written to the entries whose timestamp is more than `age` seconds ago.

    What has no timestamp stays. A clock that jumped would empty a gallery: at the first look, and after each at which
    `clock` went on by another time than `steady` did, no more than MOST_SHARE of a gallery is removed at once.
    """

    def __init__(
        self,
        deployment: Deployment,
        age: int,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deployment = deployment
        self._age = age
        self._clock = clock
        self._steady = steady
        self._offsets: dict[str, float] = {}

    async def run(self) -> None:
        """Look once an hour, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(PASS_SECONDS)

    async def look(self) -> None:
        """Remove what has grown too old; what goes wrong with a gallery is logged, and the next one looked at."""
        with self._deployment.lent() as served:
            for name, writer in served.writers.items():
                try:
                    await self._look_at(name, writer)
                except Exception as error:  # noqa: BLE001  # whatever it is, serving goes on
                    _logger.error("gallery %s keeps entries that have grown too old: %s", name, error)

    async def _look_at(self, name: str, writer: Writer) -> None:
        now = self._clock()
        offset, before = now - self._steady(), int((now - self._age) * 1e6)
        snapshot = writer.gallery.snapshot
        expired, timeless = await asyncio.to_thread(_expired, snapshot, before)
        if not abs(offset - self._offsets.get(name, math.nan)) <= MOST_DRIFT:
            check_share(len(expired), len(snapshot), most=MOST_SHARE)
        call = Call("--retain", os.urandom(16).hex(), _CALLER, math.inf)
        for start in range(0, len(expired), PIECE_ENTRIES):
            piece = frozenset(expired[start : start + PIECE_ENTRIES])
            # By their time as well: what is written meanwhile under such an id stays.
            await writer.delete(None, call, where=Filter(ids=piece, until=before))
        await writer.erase(call)
        self._offsets[name] = offset
        if expired or timeless:
            _logger.info(
                "gallery %s: %s entries had grown too old and were removed, %s have no timestamp and stay",
                name,
                len(expired),
                timeless,
            )


def _expired(snapshot: Snapshot, before: int) -> tuple[list[str], int]:
    """The ids of the entries that are older, and how many have no timestamp."""
    timeless = sum(entry.timestamp is None for entry in snapshot.entries())
    return [entry.id for entry in snapshot.matching(Filter(until=before))], timeless
