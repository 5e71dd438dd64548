import io
import os
import signal
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from reidserve.embed import decode, read_image, resize
from reidserve.embed.images import FILTERS, MAX_BYTES, MAX_PIXELS
from reidserve.errors import ImageError, ImageTooLargeError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
PICTURE = Pillow.fromarray(PIXELS)
PALETTE = PICTURE.quantize(16)
ALPHA = PICTURE.copy()
ALPHA.putalpha(Pillow.fromarray(PIXELS[..., 0]))
DEEP = np.random.default_rng(1).integers(0, 2**16, (24, 16), dtype=np.uint16)


def encode(image: Pillow.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG made by hand, with right checksums whatever its header claims."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


VALID = {
    "JPEG": encode(PICTURE, "JPEG"),
    "PNG": encode(PICTURE, "PNG"),
    "WEBP": encode(PICTURE, "WEBP"),
    "BMP": encode(PICTURE, "BMP"),
}


def decode_in_silence(data: bytes) -> np.ndarray:
    """Decode, and fail where a warning escapes: it would go to the log of a server, whoever sent the image.

    pytest makes warnings errors, and `decode` would take those for damage: so they are recorded here.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return decode(data)
        finally:
            assert [str(warning.message) for warning in caught] == []


# Palettes with several transparencies, an Exif block and an MPO index that break off: cameras and tools write them.
ODD = {
    "palette with an alpha table": encode(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "Exif that breaks off": encode(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "MPO index without images": b"\xff\xd8\xff\xe2\x00\x14MPF\0II*\0\x08" + bytes(9) + VALID["JPEG"][2:],
}


@pytest.mark.parametrize(
    "data",
    [
        *VALID.values(),
        encode(PICTURE.convert("L"), "PNG"),
        encode(PICTURE.convert("L"), "JPEG"),
        encode(PICTURE.convert("1"), "PNG"),
        encode(PALETTE, "PNG"),
        encode(PALETTE, "PNG", transparency=3),
        encode(PALETTE, "BMP"),
        encode(ALPHA, "PNG"),
        encode(ALPHA, "WEBP", lossless=True),
        encode(ALPHA.convert("LA"), "PNG"),
        encode(PICTURE.convert("CMYK"), "JPEG"),
        encode(PICTURE, "JPEG", progressive=True, quality=30),
    ],
    ids=lambda data: data[:4].decode("latin-1"),
)
def test_an_image_is_decoded_as_training_code_decodes_it(data: bytes):
    with Pillow.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    assert len(np.unique(expected)) > 1


def test_lossless_images_keep_their_pixels():
    for data in (VALID["PNG"], VALID["BMP"], encode(PICTURE, "WEBP", lossless=True)):
        np.testing.assert_array_equal(decode(data), PIXELS)
    # Alpha is dropped, not blended: colours under a transparent pixel come back.
    np.testing.assert_array_equal(decode(encode(ALPHA, "PNG")), PIXELS)


@pytest.mark.parametrize("name", ODD)
def test_an_oddity_beside_the_pixels_neither_warns_nor_costs_the_image(name: str):
    expected = np.asarray(PALETTE.convert("RGB")) if "palette" in name else decode(VALID["JPEG"])
    np.testing.assert_array_equal(decode_in_silence(ODD[name]), expected)


def test_sixteen_bits_keep_their_high_byte():
    grey = decode(encode(Pillow.fromarray(DEEP), "PNG"))
    np.testing.assert_array_equal(grey, np.repeat((DEEP >> 8)[..., np.newaxis], 3, axis=2))
    colour = np.random.default_rng(2).integers(0, 2**16, (5, 4, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colour)
    np.testing.assert_array_equal(decode(png(4, 5, depth=16, rows=rows)), colour >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_exif_is_applied(orientation: int, form: str):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = encode(PICTURE, form, exif=exif)
    with Pillow.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    # Told again by hand, from the Exif standard: 6 means that the first row is the right side.
    plain = decode(encode(PICTURE, form))
    if orientation == 6:
        np.testing.assert_array_equal(expected, np.rot90(plain, -1))
    assert np.array_equal(expected, plain) == (orientation == 1)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(form: str):
    data = encode(PICTURE, form)
    with pytest.raises(ImageError, match=f"expected a JPEG, PNG, WEBP, BMP image, got {len(data):,} other bytes"):
        decode(data)


def test_what_is_no_image_is_refused():
    with pytest.raises(ImageError, match="got no bytes"):
        decode(b"")
    for data in (b"path,pid\na.jpg,1\n", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", png(0, 5), png(5, 0)):
        with pytest.raises(ImageError, match=r"other bytes|is damaged"):
            decode(data)


@pytest.mark.parametrize("form", VALID)
@pytest.mark.parametrize("part", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_an_image_that_breaks_off_is_refused(form: str, part: float):
    with pytest.raises(ImageError):
        decode(VALID[form][: int(len(VALID[form]) * part)])


@pytest.mark.parametrize(
    ("width", "height"),
    [(60_000, 60_000), (10_000, 10_000), (MAX_PIXELS + 1, 1), (1, MAX_PIXELS + 1), (2**31 - 1, 2**31 - 1)],
)
def test_a_header_that_claims_too_many_pixels_is_refused(width: int, height: int):
    start = time.monotonic()
    with pytest.raises(ImageTooLargeError, match="an image may have 50,000,000 pixels"):
        decode_in_silence(png(width, height))
    assert time.monotonic() - start < 1


def peak_memory() -> int:
    """The most bytes this process has held, as Linux counts them."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_too_many_pixels_are_refused_before_they_are_made():
    # A file of 60 KB whose 53 million pixels are all there: as RGB they would take 160 MB or more.
    data = png(26_500, 2_000, depth=8, colour=0, rows=bytes(26_501 * 2_000))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the tests before
    before = peak_memory()
    with pytest.raises(ImageTooLargeError, match="got 26500 x 2000"):
        decode(data)
    assert peak_memory() - before < 16 * 2**20


def test_the_largest_image_is_not_too_large():
    # Its pixels are missing, so that the test needs no 150 MB; the header is accepted.
    with pytest.raises(ImageError, match="damaged") as refused:
        decode(png(MAX_PIXELS, 1, colour=0))
    assert not isinstance(refused.value, ImageTooLargeError)


def test_more_bytes_than_accepted_are_refused_unread():
    padded = VALID["PNG"] + bytes(MAX_BYTES - len(VALID["PNG"]))
    np.testing.assert_array_equal(decode(padded), PIXELS)
    with pytest.raises(ImageTooLargeError, match="an image may have 16,777,216 bytes, got 16,777,217"):
        decode(padded + b"\0")


def decodes_or_refuses(data: bytes) -> None:
    """Anything but an array or an ImageError fails the test: another exception, or a warning."""
    try:
        image = decode_in_silence(data)
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM"]), st.binary(max_size=200))
@example(b"RIFF", b"\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0")
def test_hostile_bytes_are_refused(start: bytes, rest: bytes):
    with pytest.raises(ImageError):
        decode_in_silence(start + rest)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(
    st.sampled_from(sorted(VALID.values()) + sorted(ODD.values())),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_changed_image_decodes_or_is_refused(data: bytes, changes: list[tuple[float, int]]):
    changed = bytearray(data)
    for place, value in changes:
        changed[int(place * len(data))] = value
    decodes_or_refuses(bytes(changed))


@pytest.mark.parametrize("resize_filter", FILTERS)
@pytest.mark.parametrize(("height", "width"), [(40, 12), (7, 33), (24, 16)])
def test_resizing_is_pillows_with_the_height_first(resize_filter, height: int, width: int):
    resized = resize(PIXELS, height=height, width=width, resize_filter=resize_filter)
    # Pillow counts width first.
    expected = PICTURE.resize((width, height), getattr(Pillow.Resampling, resize_filter.upper()))
    assert resized.shape == (height, width, 3)
    np.testing.assert_array_equal(resized, np.asarray(expected))


def test_every_filter_gives_other_pixels():
    resized = [resize(PIXELS, height=40, width=12, resize_filter=name).tobytes() for name in FILTERS]
    assert len(set(resized)) == len(FILTERS) == 4


def test_a_file_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(VALID["PNG"])
    (tmp_path / "link.png").symlink_to("a.png")
    assert read_image(tmp_path / "a.png") == read_image(tmp_path / "link.png") == VALID["PNG"]


@pytest.fixture
def alarm() -> Iterator[None]:
    """End a test that waits: a pipe without a writer would block it for ever."""

    def end(*_: object) -> None:
        raise TimeoutError("waited for 5 seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path, Path("/dev/null")):
        with pytest.raises(ImageError, match="this is no regular file"):
            read_image(path)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.jpg")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path):
    path = tmp_path / "sparse.jpg"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(
        ImageTooLargeError, match=r"an image may have 16,777,216 bytes, this file has 1,099,511,627,776"
    ):
        read_image(path)
    os.truncate(path, MAX_BYTES)
    assert len(read_image(path)) == MAX_BYTES
