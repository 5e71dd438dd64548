"""Features from anyone's model: a .npz of query_features, query_pids, query_camids and gallery_*."""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import DISTRACTOR, path_to_text
from reidserve.errors import EvaluationError
from reidserve.evaluate.labelled import Labelled, Labels

PARTS = ("query", "gallery")
FIELDS = ("features", "pids", "camids")

_ROWS_AT_ONCE = 4096

# What NumPy and zipfile let through of a file that is damaged, encrypted, or no archive of arrays. RuntimeError is of
# an encrypted one, MemoryError of an array that says it is larger than any memory.
_BROKEN = (
    *(ValueError, EOFError, SyntaxError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)


def read_features(path: Path) -> tuple[Labelled, Labelled]:
    """Query and gallery of a .npz with `query_features` (Q, dim), `query_pids` (Q,), `query_camids` (Q,), `gallery_*`.

    Features are normalised, so that scores are cosines; pids and camids may be numbers or text, and camids may be
    left out where no camera is known. The number 0 is the pid 0000.

    Raises:
        EvaluationError: the file is no .npz, an array is missing, or its numbers are no features.
        OSError: it cannot be read.
    """
    name = path_to_text(path)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise EvaluationError(f"{name} is a single array: expected a .npz of several (np.savez)")
            # What is no array stays the bytes it is.
            found: dict[str, NDArray[np.generic] | bytes] = {key: loaded[key] for key in loaded.files}
            arrays = {key: array for key, array in found.items() if isinstance(array, np.ndarray)}
            if other := [key for key in found if key not in arrays]:
                raise EvaluationError(f"{name} is no .npz of plain arrays (np.savez; no objects): {other[0]} is none")
    except FileNotFoundError as error:
        raise EvaluationError(f"there is no {name}") from error
    except _BROKEN as error:
        raise EvaluationError(f"{name} is no .npz of plain arrays (np.savez; no objects): {error}") from error
    expected = [f"{part}_{field}" for part in PARTS for field in FIELDS]
    optional = {f"{part}_camids" for part in PARTS}
    missing, unknown = set(expected) - set(arrays) - optional, set(arrays) - set(expected)
    if missing or unknown:
        raise EvaluationError(
            f"{name} must hold {', '.join(expected)} (camids may be left out): "
            f"missing {sorted(missing) or 'none'}, unknown {sorted(unknown) or 'none'}"
        )
    query, gallery = (_part(name, part, arrays) for part in PARTS)
    if query.embeddings.shape[1] != gallery.embeddings.shape[1]:
        raise EvaluationError(
            f"{name}: query features have {query.embeddings.shape[1]} dimensions, "
            f"gallery features {gallery.embeddings.shape[1]}"
        )
    return query, gallery


def _part(name: str, part: str, arrays: Mapping[str, NDArray[np.generic]]) -> Labelled:
    features, pids = arrays[f"{part}_features"], arrays[f"{part}_pids"]
    camids = arrays.get(f"{part}_camids")
    if features.ndim != 2 or not len(features) or features.dtype.kind not in "fiu":
        raise EvaluationError(
            f"{name}: {part}_features must be numbers (N, dim) of at least one image, "
            f"got {features.dtype} {features.shape}"
        )
    for field, labels in (("pids", pids), ("camids", camids)):
        if labels is not None and (labels.shape != (len(features),) or labels.dtype.kind not in "iuUS"):
            raise EvaluationError(
                f"{name}: {part}_{field} must be {len(features)} whole numbers or texts, "
                f"got {labels.dtype} {labels.shape}"
            )
    unit = np.empty(features.shape, np.float32)
    lengths = np.empty(len(features))
    with np.errstate(all="ignore"):
        for start in range(0, len(features), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            rows = features[some].astype(np.float64)
            lengths[some] = np.linalg.norm(rows, axis=1)
            unit[some] = rows / lengths[some, np.newaxis]
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise EvaluationError(
            f"{name}: {len(wrong)} of {len(unit)} rows of {part}_features have no direction (zero, NaN or infinite), "
            f"row {wrong[0]} is the first"
        )
    known: list[str | None] = [None] * len(unit) if camids is None else list(_texts(camids))
    named = _texts(pids)
    if pids.dtype.kind in "iu":
        # So that it is known for a distractor; where a query has it too, it is an identity by any name.
        named = [DISTRACTOR if pid == "0" else pid for pid in named]
    return Labelled(unit, Labels(named, known, [None] * len(unit)))


def _texts(labels: NDArray[np.generic]) -> list[str]:
    """Labels as Unicode, whatever NumPy holds: half a character cannot be written to a report."""
    every = labels.tolist()
    raw = [label if isinstance(label, bytes) else str(label).encode(errors="backslashreplace") for label in every]
    return [label.decode(errors="backslashreplace") for label in raw]
