"""Canaries: encoded crops whose embeddings are known, so a start-up can tell that it computes what was exported."""

import io
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from reidserve.errors import ArtifactError

CANARIES_FILE = "canaries.json"
REFERENCE_ENGINE = "fp32/onnxruntime-cpu"

BOUNDS: Mapping[str, float] = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.1}
"""Per precision, the largest distance between a canary's two embeddings (unit vectors): of an engine from its own.

A canary moved by up to 2e-6, 6e-4 and 6e-2 where one engine computed the same graph by other kernels: an int8 graph
makes whole steps of what is rounding in float32. Another resize filter moves one by 4e-2 at least, so its wrongness is
certain to show in float32 alone.
"""

FOREIGN_BOUNDS: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.2}
"""The same for an engine that has no canaries of its own, against the same precision's on ONNX Runtime's CPU.

OpenVINO's lay 2e-6, 3e-3 and 8e-2 from there.
"""

_COUNT = 8


class Canaries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Eight encoded crops and what each engine made of them at export.

    Attributes:
        images: encoded crops, JPEG and PNG, of sizes that must be resized.
        embeddings: per engine, float32 little-endian bytes of (8, dim).
    """

    images: Sequence[bytes]
    embeddings: Mapping[str, bytes]


def draw_canaries(*, height: int, width: int) -> list[bytes]:
    """Eight encoded crops for a (height, width) input, the same for every model of that size.

    Coarse blocks, fine noise and sizes above and below the input's make every filter, colour order and
    orientation give other pixels.
    """
    rng = np.random.default_rng(8)
    images = []
    for number in range(_COUNT):
        scale = (0.6, 0.9, 1.4, 2.1)[number % 4]
        shape = (max(8, round(height * scale)), max(8, round(width * scale)))
        blocks = rng.integers(0, 256, (*(max(2, side // 12) for side in shape), 3), dtype=np.uint8)
        coarse = Pillow.fromarray(blocks).resize((shape[1], shape[0]), Pillow.Resampling.NEAREST)
        noise = rng.integers(-24, 25, (*shape, 3))
        pixels = np.clip(np.asarray(coarse).astype(np.int64) + noise, 0, 255).astype(np.uint8)
        encoded = io.BytesIO()
        if number % 2:
            Pillow.fromarray(pixels).save(encoded, "JPEG", quality=90)
        else:
            Pillow.fromarray(pixels).save(encoded, "PNG")
        images.append(encoded.getvalue())
    return images


def encode_canaries(images: Sequence[bytes], embeddings: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The canaries as JSON, images and embeddings in base64."""
    raw = {engine: rows.astype("<f4").tobytes() for engine, rows in embeddings.items()}
    return msgspec.json.encode(Canaries(images=images, embeddings=raw), order="sorted")


def decode_canaries(data: bytes) -> Canaries:
    """Read canaries strictly.

    Raises:
        ArtifactError: the file does not read, or the reference engine's canaries are missing.
    """
    try:
        canaries = msgspec.json.decode(data, type=Canaries)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{CANARIES_FILE} does not read: {error}") from error
    if REFERENCE_ENGINE not in canaries.embeddings:
        raise ArtifactError(f"{CANARIES_FILE} must hold canaries of {REFERENCE_ENGINE}")
    if len(canaries.images) != _COUNT:
        raise ArtifactError(f"{CANARIES_FILE} must hold {_COUNT} images, got {len(canaries.images)}")
    for engine, raw in canaries.embeddings.items():
        if len(raw) % (4 * _COUNT):
            raise ArtifactError(f"{CANARIES_FILE} must hold {_COUNT} rows of float32 of {engine}, got {len(raw)} bytes")
    return canaries


def compare_canaries(canaries: Canaries, embeddings: NDArray[np.float32], *, engine: str) -> float:
    """The largest distance of these embeddings (8, dim) from the engine's canaries.

    An engine without canaries of its own is held against ONNX Runtime's CPU in the same precision, within
    FOREIGN_BOUNDS.

    Raises:
        ArtifactError: the distance is above the engine's bound, or there is nothing to hold it against.
    """
    kept_under, bound = _standard(canaries, engine)
    expected = np.frombuffer(canaries.embeddings[kept_under], "<f4")
    if expected.size != embeddings.size:
        raise ArtifactError(f"the canaries have {expected.size} numbers, the model gives {embeddings.size}")
    difference = float(np.linalg.norm(embeddings - expected.reshape(embeddings.shape), axis=1).max())
    # Written so that NaN fails.
    if not difference <= bound:
        raise ArtifactError(
            f"canaries differ by {difference:.2g} on {engine}, at most {bound:g} was expected: this installation "
            "does not compute what was exported (another Pillow, engine or resize filter?); export again here, "
            "or install the versions of constraints.txt"
        )
    return difference


def _standard(canaries: Canaries, engine: str) -> tuple[str, float]:
    """The engine that an engine is held against, and the bound."""
    precision = engine.partition("/")[0]
    if engine in canaries.embeddings:
        return engine, BOUNDS[precision]
    familiar = f"{precision}/onnxruntime-cpu"
    if familiar not in canaries.embeddings:
        raise ArtifactError(
            f"{CANARIES_FILE} has none of {engine} and none of {familiar}: make that flavour again with reid-export"
        )
    return familiar, FOREIGN_BOUNDS[precision]
