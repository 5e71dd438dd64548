"""Records: what is to be written for entries that came as images or as embeddings."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from reidserve.embed import Embedding, off_unit, shrink
from reidserve.errors import EmbeddingError, EntryError, ImageError, ReidError
from reidserve.index import Record
from reidserve.index.seam import Rows
from reidserve.server.writes.entries import NewEntry

_OWN = (EntryError, ImageError, EmbeddingError)
"""What is an entry's own fault."""

Known = tuple[Sequence[bytes], Mapping[bytes, Embedding]]
"""The sha256 of each entry's content, and the embeddings of those images that the gallery holds, by sha256."""


class Embed(Protocol):
    """What embeds images for imports: behind interactive queries."""

    async def __call__(
        self, images: Sequence[bytes], *, deadline: float | None = None
    ) -> Sequence[Embedding | ReidError]:
        """Of each encoded image its embedding (dim,), or why there is none."""


class Records:
    """Makes records for one gallery; an image whose content it holds, under whatever id, is not embedded again.

    With `thumbnails` a record of an image has one.
    """

    def __init__(self, reader: Rows, embed: Embed, *, thumbnails: bool = False) -> None:
        """Make records with what `reader` finds, which closes with this."""
        self._embed = embed
        self._thumbnails = thumbnails
        self._reader = reader
        self._dim = self._reader.origin.dim

    async def make(
        self,
        entries: Sequence[NewEntry],
        *,
        run: Callable[[Callable[[], Known]], Awaitable[Known]],
        deadline: float | None = None,
    ) -> list[Record | ReidError]:
        """Of each entry its record, or why it cannot be written: an EntryError, ImageError or EmbeddingError.

        `run` runs what blocks, one at a time; `deadline` is on time.monotonic's clock. What is no entry's own fault is
        raised.
        """
        contents, vectors = await run(lambda: self._known(entries))
        fresh = {
            content: new.content
            for new, content in zip(entries, contents, strict=True)
            if isinstance(new.content, bytes) and content not in vectors
        }
        answers: dict[bytes, Embedding | ReidError] = dict(vectors)
        if fresh:
            answers |= zip(fresh, await self._embed(list(fresh.values()), deadline=deadline), strict=True)
        for answer in answers.values():
            if isinstance(answer, ReidError) and not isinstance(answer, _OWN):
                raise answer
        records = [
            self._record(new, content, answers[content] if isinstance(new.content, bytes) else new.content)
            for new, content in zip(entries, contents, strict=True)
        ]
        if not self._thumbnails:
            return records
        return await asyncio.to_thread(
            lambda: [_shown(new, record) for new, record in zip(entries, records, strict=True)]
        )

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()

    def _known(self, entries: Sequence[NewEntry]) -> Known:
        contents = [_sha256(new.content) for new in entries]
        images = {content for new, content in zip(entries, contents, strict=True) if isinstance(new.content, bytes)}
        found = {content: self._reader.find_vector(content) for content in images}
        return contents, {content: vector for content, vector in found.items() if vector is not None}

    def _record(self, new: NewEntry, content: bytes, vector: Embedding | ReidError) -> Record | ReidError:
        name = f"entry {new.entry.id!r}"
        if isinstance(vector, ReidError):
            return type(vector)(f"{name}: {vector}")
        if vector.shape != (self._dim,):
            return EntryError(f"{name}: expected an embedding of {self._dim} dimensions, got {vector.size}")
        if wrong := off_unit(vector[np.newaxis]):
            return EntryError(f"{name}: expected an embedding of unit length (L2-normalise it), got {wrong[0][1]:g}")
        return Record(new.entry, content, vector)


def _shown(new: NewEntry, record: Record | ReidError) -> Record | ReidError:
    """A record with its thumbnail, where it is of an image."""
    if isinstance(record, ReidError) or not isinstance(new.content, bytes):
        return record
    try:
        return replace(record, thumbnail=shrink(new.content))
    except ImageError as error:
        return type(error)(f"entry {new.entry.id!r}: {error}")


def _sha256(content: bytes | Embedding) -> bytes:
    """Of an encoded image, or of an embedding's bytes: little-endian float32."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.astype("<f4").tobytes()).digest()
