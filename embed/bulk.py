"""The seam between a build and what embeds its images: a model in this process, or workers elsewhere."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from reidserve.embed.contract import Contract
from reidserve.embed.embedder import Embedding
from reidserve.errors import ReidError

Prepared = TypeVar("Prepared")
"""An image on its way: pixels here, what will be its embedding elsewhere."""


class BulkEmbedder(Protocol[Prepared]):
    """Embeds many images, each to what an Embedder of the same artifact on the same engine makes of it alone.

    Attributes:
        contract: what is promised.
        engine: what computes it, such as "fp32/onnxruntime-cpu".
        unverified: whether the rank-parity gate has not let through what this engine computes.
        ahead: how many images are worth preparing in front of those that are waited for.
    """

    contract: Contract
    engine: str
    unverified: bool
    ahead: int

    def prepare(self, data: bytes, /) -> Prepared:
        """Begin with an encoded image; may be called from several threads.

        Raises:
            ImageError: the bytes are no image that is accepted; it may as well be what `embed_each` answers.
        """
        ...

    def embed_each(self, images: Sequence[Prepared], /) -> Sequence[Embedding | ReidError]:
        """Per image its embedding (dim,), or what was wrong with it: no image costs another its answer."""
        ...
