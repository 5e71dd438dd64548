"""Crops to labelled embeddings, each file embedded once."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from reidserve.datasets import Crop, path_to_text
from reidserve.embed import Embedder, Embeddings, Image, map_ahead, read_image
from reidserve.errors import EvaluationError, ReidError
from reidserve.evaluate.labelled import Labelled

_GROUP = 256


def embed_crops(
    query: Sequence[Crop],
    gallery: Sequence[Crop],
    embedder: Embedder,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Labelled, Labelled, list[tuple[str, str]]]:
    """Embed queries and gallery; the third is which images were left out, and why.

    Raises:
        EvaluationError: no query, or no gallery image, can be read.
    """
    paths = list(dict.fromkeys(crop.path for crop in (*query, *gallery)))
    embeddings: dict[Path, Embeddings] = {}
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
            answers = embedder.embed_each(np.stack([image for _, image in readable])) if readable else []
            for (path, _), answer in zip(readable, answers, strict=True):
                if isinstance(answer, np.ndarray):
                    embeddings[path] = answer
                else:
                    failures.append((path_to_text(path), str(answer)))
            progress(len(embeddings) + len(failures), len(paths))
    return _labelled("query", query, embeddings), _labelled("gallery", gallery, embeddings), failures


def _labelled(part: str, crops: Sequence[Crop], embeddings: dict[Path, Embeddings]) -> Labelled:
    readable = [crop for crop in crops if crop.path in embeddings]
    if not readable:
        raise EvaluationError(f"none of {len(crops)} {part} images can be read")
    return Labelled(
        np.stack([embeddings[crop.path] for crop in readable]),
        [crop.pid for crop in readable],
        [crop.camid for crop in readable],
        [path_to_text(crop.path.resolve()) for crop in readable],
    )
