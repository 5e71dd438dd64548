"""Pieces: the stream of an import, cut into what is written together."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from reidserve.errors import NotServingError
from reidserve.server.writes.entries import Numbered

PIECE_ENTRIES = 256
PIECE_BYTES = 8 * 2**20
PIECE_SECONDS = 0.5
"""A piece is written when it has so many entries or bytes, or when its first one has waited for so long."""


@dataclass(slots=True)
class _Piece:
    entries: list[Numbered] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    size: int = 0
    until: float | None = None

    def put(self, one: Numbered) -> None:
        self.entries.append(one)
        self.ids.add(one.entry_id)
        self.size += one.size
        self.until = self.until or time.monotonic() + PIECE_SECONDS

    @property
    def full(self) -> bool:
        return len(self.entries) >= PIECE_ENTRIES or self.size >= PIECE_BYTES

    @property
    def seconds_left(self) -> float | None:
        return None if self.until is None else max(0.0, self.until - time.monotonic())


async def pieces_of(stream: AsyncIterator[Numbered], retired: asyncio.Event) -> AsyncGenerator[list[Numbered]]:
    """Cut a stream into pieces of which each has an id once; no more than one entry is read ahead of a piece.

    What came before the stream failed, or before the writer was `retired`, is a piece still.

    Raises:
        NotServingError: the writer was retired.
    """
    reading, stopping = _read(stream), asyncio.ensure_future(retired.wait())
    piece = _Piece()
    try:
        while True:
            either: set[asyncio.Future[Any]] = {reading, stopping}
            await asyncio.wait(either, timeout=piece.seconds_left, return_when=asyncio.FIRST_COMPLETED)
            one = reading.result() if reading.done() and reading.exception() is None else None
            if one is not None and one.entry_id not in piece.ids and not stopping.done():
                piece.put(one)
                reading = _read(stream)
                if not piece.full:
                    continue
            if piece.entries:
                yield piece.entries
                piece = _Piece()
            elif reading.done() and one is None:
                reading.result()
                return
            else:
                raise NotServingError(
                    "the server stops, or another model takes the place of this one: go on behind the last "
                    "acknowledged number"
                )
    finally:
        for waiting in (reading, stopping):
            waiting.cancel()
        await asyncio.gather(reading, stopping, return_exceptions=True)


def _read(stream: AsyncIterator[Numbered]) -> "asyncio.Future[Numbered | None]":
    """The next of a stream, None at its end."""

    async def read() -> Numbered | None:
        return await anext(stream, None)

    return asyncio.ensure_future(read())
