"""Crops to labelled embeddings, each file embedded once."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from reidserve.datasets import Crop, path_to_text
from reidserve.embed import Batch, Embedding, Embeddings, Image, map_ahead, read_image
from reidserve.errors import EmbeddingError, EvaluationError, ReidError
from reidserve.evaluate.labelled import Labelled, Labels

_GROUP = 256

_OPPOSITE = 1e-6
"""The length of a sum of two unit vectors below which its direction is rounding."""


class CropEmbedder(Protocol):
    """Whatever embeds crops: the Embedder of an artifact, or a checkpoint's network in torch."""

    def prepare(self, data: bytes) -> Image:
        """Encoded bytes to one row of a Batch, or an ImageError."""
        ...

    def embed_each(self, batch: Batch) -> Sequence[Embedding | EmbeddingError]:
        """Per image of a Batch its embedding (dim,), of unit length, or what was wrong with it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The crops of a part that could be read, in its order, and their embeddings.

    Attributes:
        crops: N crops.
        embeddings: float32 (N, dim), rows of unit length.
    """

    crops: Sequence[Crop]
    embeddings: Embeddings

    @property
    def labelled(self) -> Labelled:
        """The embeddings with what scoring must know of each."""
        return Labelled(self.embeddings, labels_of(self.crops))


def labels_of(crops: Sequence[Crop]) -> Labels:
    """What scoring must know of crops."""
    return Labels(
        [crop.pid for crop in crops],
        [crop.camid for crop in crops],
        [path_to_text(crop.path.resolve()) for crop in crops],
    )


def embed_crops(
    query: Sequence[Crop],
    gallery: Sequence[Crop],
    embedder: CropEmbedder,
    *,
    flip: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Labelled, Labelled, list[tuple[str, str]]]:
    """Embed queries and gallery; the third is which images were left out, and why.

    Raises:
        EvaluationError: no query, or no gallery image, can be read.
    """
    parts = {"query": query, "gallery": gallery}
    embedded, failures = embed_parts(parts, embedder, flip=flip, progress=progress)
    return embedded["query"].labelled, embedded["gallery"].labelled, failures


def embed_parts(
    parts: Mapping[str, Sequence[Crop]],
    embedder: CropEmbedder,
    *,
    flip: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Embedded], list[tuple[str, str]]]:
    """Embed the crops of each part; the second is which images were left out, and why.

    With `flip` an embedding is the mean of the unit embeddings of the image and of its mirror image, normalised.
    layumi, and FLIP_FEATS in strong-baseline's line, add the features before they are normalised, so that the longer
    weighs more; an artifact's embeddings have no length left.

    Raises:
        EvaluationError: of some part no image can be read.
    """
    paths = list(dict.fromkeys(crop.path for crops in parts.values() for crop in crops))
    embeddings: dict[Path, Embedding] = {}
    failures: list[tuple[str, str]] = []

    def load(path: Path) -> tuple[Path, Image | ReidError | OSError]:
        try:
            return path, embedder.prepare(read_image(path))
        except (ReidError, OSError) as error:
            return path, error

    with closing(map_ahead(load, paths, ahead=_GROUP)) as loading:
        while group := list(itertools.islice(loading, _GROUP)):
            readable = [(path, image) for path, image in group if isinstance(image, np.ndarray)]
            failures += [(path_to_text(path), str(error)) for path, error in group if isinstance(error, Exception)]
            answers = _embed(np.stack([image for _, image in readable]), embedder, flip=flip) if readable else []
            for (path, _), answer in zip(readable, answers, strict=True):
                if isinstance(answer, np.ndarray):
                    embeddings[path] = answer
                else:
                    failures.append((path_to_text(path), str(answer)))
            progress(len(embeddings) + len(failures), len(paths))
    return {part: _embedded(part, crops, embeddings, failures) for part, crops in parts.items()}, failures


def _embed(batch: Batch, embedder: CropEmbedder, *, flip: bool) -> Sequence[Embedding | EmbeddingError]:
    answers = embedder.embed_each(batch)
    if not flip:
        return answers
    mirrored = embedder.embed_each(np.ascontiguousarray(batch[:, :, ::-1]))
    return [_mean(*pair) for pair in zip(answers, mirrored, strict=True)]


def _mean(one: Embedding | EmbeddingError, other: Embedding | EmbeddingError) -> Embedding | EmbeddingError:
    if isinstance(one, EmbeddingError):
        return one
    if isinstance(other, EmbeddingError):
        return other
    total = one + other
    length = np.sqrt(np.vecdot(total, total))
    if length < _OPPOSITE:
        return EmbeddingError("the image and its mirror image have opposite embeddings, which have no mean")
    mean: Embedding = total / length
    return mean


def _embedded(
    part: str, crops: Sequence[Crop], embeddings: Mapping[Path, Embedding], failures: Sequence[tuple[str, str]]
) -> Embedded:
    readable = [crop for crop in crops if crop.path in embeddings]
    if not readable:
        names = {path_to_text(crop.path) for crop in crops}
        first = next((f", first {name}: {reason}" for name, reason in failures if name in names), "")
        raise EvaluationError(f"none of {len(crops)} {part} images can be read{first}")
    return Embedded(readable, np.stack([embeddings[crop.path] for crop in readable]))
