"""The seam between an artifact and the engine that computes it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reidserve.embed.images import Batch


class Session(Protocol):
    """A graph of the contract, ready on some engine.

    A call takes a Batch (N, height, width, 3) with N >= 1 and gives float32 (N, dim), row i for image i; it may
    be made from any thread, and so many as there are lanes at a time.

    Attributes:
        engine: flavour and engine, such as "fp32/onnxruntime-cpu": what canaries are kept under.
        max_batch: the largest N worth giving at once, to all lanes together.
        lanes: how many calls are computed side by side, each on its share of the device.
    """

    engine: str
    max_batch: int
    lanes: int

    def __call__(self, batch: Batch, /) -> NDArray[np.float32]:
        """Compute the batch."""
        ...
