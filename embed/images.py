"""Encoded bytes to pixels, and pixels to a model's input size: the one decode and the one resize of reidserve.

Training, export, indexing and serving all come through here, so a crop looks the same to the network
wherever it meets one.
"""

import io
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from reidserve.errors import ImageError, ImageTooLargeError

Image = NDArray[np.uint8]
"""(H, W, 3), RGB."""

Batch = NDArray[np.uint8]
"""(N, height, width, 3), RGB, resized as in training."""

ResizeFilter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
FILTERS: Sequence[ResizeFilter] = get_args(ResizeFilter)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000

THUMBNAIL_SIDE = 128
THUMBNAIL_TYPE = "image/webp"
_THUMBNAIL = {"quality": 75, "method": 2}
"""Beside the default method, half the time for 3 % more bytes."""


def encode_png(image: Image) -> bytes:
    """An Image as a PNG file's bytes."""
    encoded = io.BytesIO()
    Pillow.fromarray(image).save(encoded, "PNG")
    return encoded.getvalue()


def read_image(path: Path) -> bytes:
    """The encoded bytes of an image file.

    Raises:
        ImageError: it is no file, or has more than MAX_BYTES bytes.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("expected an image file, this is no regular file")
    if status.st_size > MAX_BYTES:
        raise ImageTooLargeError(f"an image may have {MAX_BYTES:,} bytes, this file has {status.st_size:,}")
    return path.read_bytes()


def decode(data: bytes) -> Image:
    """Decode a JPEG, PNG, WebP or BMP into RGB as ReID training code does, (H, W, 3) uint8.

    That is Pillow's `convert("RGB")` (torchreid, fast-reid, strong-baseline): grey is repeated, palettes are
    looked up, alpha is dropped, CMYK is inverted without a colour profile. The EXIF orientation is applied
    first, as fast-reid does (the others ignore it; their datasets carry none). A 16-bit grey keeps its high
    byte, as Pillow keeps it for 16-bit colour: `convert` alone would saturate it to white. JPEGs are decoded
    at full size, never through Pillow's `draft`, which moves pixels.

    Raises:
        ImageTooLargeError: more than MAX_BYTES bytes, or a header that claims more than MAX_PIXELS pixels.
        ImageError: no image, a damaged one, or a format that is not accepted.
    """
    if not data:
        raise ImageError("expected an encoded image, got no bytes")
    if len(data) > MAX_BYTES:
        raise ImageTooLargeError(f"an image may have {MAX_BYTES:,} bytes, got {len(data):,}")
    try:
        with _in_silence():
            opened = Pillow.open(io.BytesIO(data), formats=FORMATS)
        with opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ImageTooLargeError(f"an image may have {MAX_PIXELS:,} pixels, got {width} x {height}")
            opened.load()
            with _in_silence():
                upright = ImageOps.exif_transpose(opened)
            return np.asarray(_to_rgb(upright))
    except Pillow.DecompressionBombError as error:
        raise ImageTooLargeError(f"an image may have {MAX_PIXELS:,} pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"expected a {', '.join(FORMATS)} image, got {len(data):,} other bytes") from error
    except ImageError:
        raise
    except Exception as error:  # hostile bytes make decoders raise anything
        raise ImageError(f"the image is damaged: {error}") from error


def shrink(data: bytes) -> bytes:
    """An encoded image as a thumbnail: WebP of its pixels alone, at most THUMBNAIL_SIDE wide and high, never enlarged.

    Raises:
        ImageTooLargeError, ImageError: as `decode`.
    """
    small = Pillow.fromarray(decode(data))
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Pillow.Resampling.BICUBIC)
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", **_THUMBNAIL)
    return encoded.getvalue()


_silence = threading.Lock()


@contextmanager
def _in_silence() -> Iterator[None]:
    # Pillow warns of odd metadata beside good pixels. Filters belong to the process: one thread at a time.
    with _silence, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith("I"):
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        image = Pillow.fromarray(high_byte)
    # Transparency is dropped, and Pillow warns of dropping it.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def resize(image: Image, *, height: int, width: int, resize_filter: ResizeFilter) -> Image:
    """Resize to (height, width, 3) uint8 with Pillow's anti-aliased filter, as torchvision does to PIL images."""
    # Pillow counts width first.
    resized = Pillow.fromarray(image).resize((width, height), Pillow.Resampling[resize_filter.upper()])
    return np.asarray(resized)
