"""A checkpoint's network in torch, embedding crops as the artifact that is exported from it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reidserve.embed import Batch, Embedding, Embeddings, Image, decode, off_unit, resize
from reidserve.errors import DeviceError, EmbeddingError
from reidserve.export.checkpoints import Checkpoint
from reidserve.export.convert.feeding import Feeding, feed_by_hand

_MAX_BATCH = 32

_OPPOSITE = 1e-6
"""The length of a sum of two unit vectors below which its direction is rounding; it is left shorter than 1."""


class TorchEmbedder:
    """A checkpoint's network, fed and normalised as its artifact does inside the graph.

    An exported artifact is held against this very computation before it is kept.

    Attributes:
        checkpoint: whose network it is.
        feeding: how a crop is resized, and what is done to its pixels.
        flip: whether an embedding is the mean of the crop's and its mirror image's, of unit length again.
        engine: such as "fp32/torch-cpu".

    Raises:
        DeviceError: torch does not find the device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        feeding: Feeding,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        flip: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("asked for cuda, torch finds none: give --device cpu, or install torch for CUDA")
        self.checkpoint = checkpoint
        self.feeding = feeding
        self.flip = flip
        self.engine = f"fp32/torch-{device}"
        self._device = torch.device(device)
        self._network = checkpoint.network.eval().to(self._device)

    def prepare(self, data: bytes) -> Image:
        """Encoded bytes to one (height, width, 3) uint8 row of a Batch.

        Raises:
            ImageError: the bytes are no image that is accepted.
        """
        feeding = self.feeding
        return resize(decode(data), height=feeding.height, width=feeding.width, resize_filter=feeding.resize)

    def embed(self, batch: Batch) -> Embeddings:
        """A Batch (N, height, width, 3) to rows (N, dim); of unit length, unless the network gives none."""
        rows = []
        with torch.inference_mode(), _full_precision():
            for start in range(0, len(batch), _MAX_BATCH):
                pixels = feed_by_hand(batch[start : start + _MAX_BATCH], self.feeding.preprocessing)
                rows.append(self._embed(torch.from_numpy(pixels).to(self._device)).cpu().numpy())
        return np.concatenate(rows)

    def _embed(self, pixels: Tensor) -> Tensor:
        normalize = torch.nn.functional.normalize
        straight = normalize(self._network(pixels))
        if not self.flip:
            return straight
        return normalize(straight + normalize(self._network(pixels.flip(3))), eps=_OPPOSITE)

    def embed_each(self, batch: Batch) -> list[Embedding | EmbeddingError]:
        """Per image of a Batch its embedding (dim,), or what was wrong with it: no image costs another its answer."""
        rows = self.embed(batch)
        answers: list[Embedding | EmbeddingError] = list(rows)
        for place, length in off_unit(rows):
            answers[place] = EmbeddingError(f"the network gave no unit vector, its length is {length:g}")
        return answers


@contextmanager
def _full_precision() -> Iterator[None]:
    # cuDNN convolves in TF32 unless told not to, and that moves every embedding.
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
