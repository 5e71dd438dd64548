"""The encoder: encoded images through the decoders and the engine, many callers' together."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reidserve.embed import Embedder, Embedding, Image
from reidserve.embed.cores import cores
from reidserve.errors import ReidError
from reidserve.server.queries.batcher import Batcher, settled
from reidserve.server.queries.limits import Limits
from reidserve.server.queries.question import Stages
from reidserve.server.queries.telemetry import Telemetry


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What the engine made of an image.

    Attributes:
        embedding: (dim,), of unit length.
        batch_size: how many images it computed together.
        decode_seconds: what its decoding took on the engine's thread; 0 where a decoder did that.
    """

    embedding: Embedding
    batch_size: int
    decode_seconds: float


class Encoder:
    """A model, its decoders, and a thread for each of its engine's lanes.

    Decoders are as many as there are cores and each takes one image at a time, so what waits is not begun. Where
    nothing else is under way, a lone image is decoded on a thread of the engine's: there is nobody whom that delays
    and one thread less to wake.

    Attributes:
        at_once: how many images the engine computes at a time, on all its lanes.
    """

    def __init__(self, embedder: Embedder, limits: Limits, telemetry: Telemetry) -> None:
        most = limits.images_per_batch or embedder.max_batch // embedder.lanes
        self.at_once = most * embedder.lanes
        self._embedder = embedder
        self._decoders: Batcher[bytes, Image] = Batcher(
            self._decode, most=1, workers=limits.decoders or cores(), name="decoder"
        )
        self._engine: Batcher[bytes | Image, Encoded] = Batcher(
            self._encode,
            most=most,
            workers=embedder.lanes,
            name="engine",
            patience=limits.stuck_seconds,
            tell=telemetry.batch,
        )

    @property
    def stuck(self) -> bool:
        """Whether the engine has been computing one batch for longer than any should take."""
        return self._engine.stuck

    @property
    def waiting(self) -> int:
        """How many images wait for a decoder or for the engine."""
        return self._decoders.waiting + self._engine.waiting

    async def encode(
        self, images: Sequence[bytes], stages: Stages, *, behind: bool = False
    ) -> list[Encoded | ReidError]:
        """What becomes of each image, an embedding or an ImageError or EmbeddingError of its own; `behind` for imports.

        Raises:
            EngineStuckError: the engine does not come back from a batch.
        """
        self._engine.check()
        if len(images) == 1 and self._engine.idle and self._decoders.idle:
            return await self._encode_alone(images[0], stages)
        with stages.measure("decode"):
            decoded = await settled([self._decoders.submit(data, behind=behind) for data in images])
        with stages.measure("embed"):
            encoded = await settled(
                [self._engine.submit(image, behind=behind) for image in decoded if not isinstance(image, ReidError)]
            )
        good = iter(encoded)
        return [image if isinstance(image, ReidError) else next(good) for image in decoded]

    async def prepare(self, data: bytes) -> Image:
        """An encoded image as the engine gets it, (height, width, 3).

        Raises:
            ImageError: it is none.
        """
        return await self._decoders.submit(data)

    async def close(self) -> None:
        """Stop the threads; nobody may be waiting any more."""
        await self._decoders.close()
        await self._engine.close()

    async def _encode_alone(self, data: bytes, stages: Stages) -> list[Encoded | ReidError]:
        with stages.measure("embed"):
            encoded = await settled([self._engine.submit(data)])
        (one,) = encoded
        if isinstance(one, Encoded):
            seconds = stages.seconds.pop("embed")
            stages.seconds |= {"decode": one.decode_seconds, "embed": seconds - one.decode_seconds}
        return encoded

    def _decode(self, images: Sequence[bytes]) -> list[Image | ReidError]:
        return [self._prepared(data)[0] for data in images]

    def _encode(self, images: Sequence[bytes | Image]) -> list[Encoded | ReidError]:
        prepared = [self._prepared(image) if isinstance(image, bytes) else (image, 0.0) for image in images]
        batch = [image for image, _ in prepared if not isinstance(image, ReidError)]
        computed = iter(self._embedder.embed_each(np.stack(batch)) if batch else ())
        return [
            image if isinstance(image, ReidError) else _encoded(next(computed), len(batch), seconds)
            for image, seconds in prepared
        ]

    def _prepared(self, data: bytes) -> tuple[Image | ReidError, float]:
        start = time.perf_counter()
        try:
            return self._embedder.prepare(data), time.perf_counter() - start
        except ReidError as error:
            return error, 0.0


def _encoded(computed: Embedding | ReidError, batch_size: int, decode_seconds: float) -> Encoded | ReidError:
    return computed if isinstance(computed, ReidError) else Encoded(computed, batch_size, decode_seconds)
