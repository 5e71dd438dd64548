"""Thumbnails: made small, kept with their row and gone with it, and shown under the rules of every call."""

import asyncio
import base64
import contextlib
import hashlib
import io
import os
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.datasets import read_crops
from reidserve.embed import Embedder, decode, shrink
from reidserve.errors import ConfigError, GalleryError, GalleryFullError, ImageError, ImageTooLargeError
from reidserve.index import Entry, Filter, Record, build_gallery, open_gallery, open_writer, rebuild_gallery
from reidserve.index.storage import database
from reidserve.index.storage.database import DATABASE
from reidserve.index.storage.store import open_store
from reidserve.index.verify import repair_gallery, verify_gallery
from reidserve.server.settings import Settings
from tests.conftest import DIM, draw_crop, run_command, unit_rows, write_crops
from tests.test_http import serving
from tests.test_keys import add

FIRST = "0001_c1s1_000000_00.png"
ODD = "tür 7/ä%41/日本 #1?.png"
VECTORS = unit_rows(np.random.default_rng(11), 64, DIM)


def png(pid: int, camid: int = 1) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(draw_crop(pid, camid)).save(encoded, "PNG")
    return encoded.getvalue()


def huge_png() -> bytes:
    """A few bytes whose header claims 3.6e9 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def kept(folder: Path) -> dict[str, bytes]:
    """The thumbnails of a gallery by entry id, as SQLite has them."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        return dict(connection.execute("SELECT id, blob FROM thumbnail JOIN entry USING (row)"))


def version(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        (number,) = connection.execute("PRAGMA user_version").fetchone()
        return number


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "crops"
    write_crops(folder, pids=3)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, images: Path, embedder: Embedder) -> Path:
    out = tmp_path_factory.mktemp("galleries") / "shop.gallery"
    build_gallery(read_crops(images), images, out, embedder, thumbnails=True)
    return out


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "shop.gallery"))


def test_a_thumbnail_is_upright_small_and_of_pixels_alone():
    picture = Image.new("RGB", (400, 300), (200, 30, 30))
    picture.paste((30, 30, 200), (0, 0, 200, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # what is left belongs on top
    exif[0x010E] = "a person's name"
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=95, exif=exif)
    small = shrink(encoded.getvalue())
    assert b"a person's name" in encoded.getvalue()
    assert b"name" not in small
    with Image.open(io.BytesIO(small)) as opened:
        assert (opened.format, opened.size, dict(opened.getexif())) == ("WEBP", (96, 128), {})
    pixels = decode(small)
    np.testing.assert_allclose(pixels[20, 48], (30, 30, 200), atol=12)
    np.testing.assert_allclose(pixels[108, 48], (200, 30, 30), atol=12)


@pytest.mark.parametrize(("size", "expected"), [((36, 70), (36, 70)), ((1, 900), (1, 128)), ((128, 128), (128, 128))])
def test_a_thumbnail_is_never_larger_than_its_image(size, expected):
    encoded = io.BytesIO()
    Image.new("RGB", size).save(encoded, "PNG")
    with Image.open(io.BytesIO(shrink(encoded.getvalue()))) as opened:
        assert opened.size == expected


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"", ImageError), (b"no image", ImageError), (png(1)[:60], ImageError), (huge_png(), ImageTooLargeError)],
)
def test_of_what_is_no_image_there_is_none(data: bytes, kind: type[ImageError]):
    with pytest.raises(kind):
        shrink(data)


def test_each_image_of_a_build_that_allows_it_has_one(built: Path, images: Path):
    assert kept(built) == {path.name: shrink(path.read_bytes()) for path in images.iterdir()}
    with contextlib.closing(open_gallery(built)) as gallery:
        assert gallery.thumbnail(FIRST) == shrink((images / FIRST).read_bytes())
        assert gallery.thumbnail("nobody") is None
    assert verify_gallery(built).clean


def test_without_leave_none_is_kept_and_the_format_is_the_old_one(tmp_path: Path, images: Path, embedder: Embedder):
    build_gallery(read_crops(images), images, tmp_path / "g.gallery", embedder)
    assert version(tmp_path / "g.gallery") == 2
    with contextlib.closing(open_gallery(tmp_path / "g.gallery", write=True)) as gallery:
        assert gallery.thumbnail(FIRST) is None
        assert gallery.delete([FIRST]).changed == 1
    assert version(tmp_path / "g.gallery") == 2


def test_the_first_thumbnail_changes_the_format_and_nothing_else(tmp_path: Path, images: Path, embedder: Embedder):
    out = tmp_path / "g.gallery"
    build_gallery(read_crops(images), images, out, embedder)
    with contextlib.closing(open_store(out)) as store:
        before = list(store.changes(since=-1).pieces[0].entries)
    report = build_gallery(read_crops(images), images, out, embedder, thumbnails=True)
    assert (report.embedded, report.reused, report.kept, report.generation) == (0, 6, 0, 1)
    assert (version(out), len(kept(out))) == (3, 6)
    assert not list(out.glob("gallery.format-*"))
    with contextlib.closing(open_store(out)) as store:
        assert list(store.changes(since=-1).pieces[0].entries) == before
    report = build_gallery(read_crops(images), images, out, embedder, thumbnails=True)
    assert (report.reused, report.kept, report.generation) == (0, 6, 1)


def test_an_older_reidserve_refuses_a_gallery_with_thumbnails_by_name(folder: Path, monkeypatch):
    monkeypatch.setattr(database, "NEWEST", 2)
    with pytest.raises(GalleryError, match="has format 3, this reidserve reads 1 to 2: install a newer reidserve"):
        open_store(folder)


def test_a_thumbnail_lives_as_long_as_its_content(folder: Path):
    before = kept(folder)
    with open_writer(folder) as store:
        stored = store.get(FIRST)
        assert stored is not None
        store.update([Entry(FIRST, pid="someone else")])
        assert kept(folder) == before
        store.upsert([Record(Entry(FIRST, pid="again"), stored.content_sha256, stored.vector)])
        assert kept(folder) == before
        store.upsert([Record(Entry(FIRST), b"\1" * 32, VECTORS[0])])
        assert kept(folder) == {name: blob for name, blob in before.items() if name != FIRST}
        store.upsert([Record(Entry(FIRST), b"\2" * 32, VECTORS[1], b"another")])
        assert kept(folder)[FIRST] == b"another"
        store.delete(before)
        assert (kept(folder), store.faults()) == ({}, [])


def test_a_write_that_fails_leaves_the_thumbnail_that_was_there(folder: Path):
    before = kept(folder)
    with open_writer(folder) as store:
        store.most_entries = 6
        records = [Record(Entry(name), b"\3" * 32, VECTORS[3], b"new") for name in (FIRST, "one more")]
        with pytest.raises(GalleryFullError):
            store.upsert(records)
    assert kept(folder) == before


def test_a_damaged_thumbnail_is_not_shown_and_repaired_away(folder: Path):
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE thumbnail SET blob = zeroblob(length(blob)) WHERE row = 1")
        connection.execute("INSERT INTO thumbnail VALUES (999, x'00', 0)")
    with contextlib.closing(open_gallery(folder)) as gallery:
        name = next(gallery.snapshot.entries()).id
        assert gallery.thumbnail(name) is None
    found = verify_gallery(folder)
    assert found.faults == ["2 thumbnails belong to no entry or fail their checksum"]
    repair_gallery(folder, found)
    assert verify_gallery(folder).clean
    assert len(kept(folder)) == 5


def test_a_rebuild_makes_them_again_where_there_were_some(folder: Path, tmp_path: Path, other_model: Path):
    from reidserve.embed import open_embedder

    rebuild_gallery(folder, tmp_path / "new.gallery", open_embedder(other_model))
    assert kept(tmp_path / "new.gallery") == kept(folder)


def test_a_copy_has_them_too(folder: Path, tmp_path: Path):
    done = run_command("reid-index", "copy", folder, tmp_path / "copy.gallery")
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "copy.gallery") == kept(folder)


def test_the_commands_keep_them_where_they_are_told_to(tmp_path: Path, images: Path, model: Path):
    shutil.copytree(images, tmp_path / "crops")
    (tmp_path / "other.png").write_bytes(png(9))
    for arguments in (("build", "crops"), ("add", "crops.gallery", "other.png", "--id", "other")):
        for thumbnails in ((), ("--thumbnails",)):
            done = run_command("reid-index", *arguments, "--model", model, *thumbnails, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "crops.gallery") == {
        **{path.name: shrink(path.read_bytes()) for path in images.iterdir()},
        "other": shrink(png(9)),
    }


# Over HTTP.


def told(folder: Path, **settings) -> Settings:
    return Settings(Path("model"), [folder], **settings)


async def look(server, entry_id: str, **said):
    return await server.client.get(f"/v1/galleries/shop/entries/{entry_id}/thumbnail", **said)


async def refusal(server, entry_id: str, **said) -> tuple[int, str]:
    answer = await look(server, entry_id, **said)
    return answer.status_code, answer.json()["reason"]


async def test_a_thumbnail_is_an_image_for_one_browser(embedder, folder):
    async with serving(embedder, folder) as server:
        answer = await look(server, FIRST)
        assert (answer.status_code, answer.content) == (200, kept(folder)[FIRST])
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["cache-control"] == "private, max-age=60"
        assert answer.headers["vary"] == "authorization"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert server.count(method="reid.v1.GalleryService/GetThumbnail", code="OK") == 1
        code, said = await server.ask(
            "POST", "/reid.v1.GalleryService/GetThumbnail", json={"gallery": "shop", "entryId": FIRST}
        )
        assert (code, said["contentType"], base64.b64decode(said["image"])) == (200, "image/webp", answer.content)


async def test_who_asks_for_what_is_not_there_is_told_so(embedder, folder):
    with open_writer(folder) as store:
        store.upsert([Record(Entry("bare"), b"\4" * 32, VECTORS[4])])
    async with serving(embedder, folder) as server:
        assert await refusal(server, "bare") == (404, "THUMBNAIL_NOT_FOUND")
        assert await refusal(server, "nobody") == (404, "ENTRY_NOT_FOUND")
        answer = await server.client.get(f"/v1/galleries/mall/entries/{FIRST}/thumbnail")
        assert (answer.status_code, answer.json()["reason"]) == (404, "GALLERY_NOT_FOUND")
        assert server.count(method="reid.v1.GalleryService/GetThumbnail", code="NOT_FOUND") == 3


async def test_keys_hold_for_thumbnails_as_for_every_call(embedder, folder, tmp_path):
    good = add(tmp_path / "keys.json", "good", scopes={"search": ("shop",)})
    other = add(tmp_path / "keys.json", "other", scopes={"search": ("mall",)})
    writer = add(tmp_path / "keys.json", "writer", scopes={"write": ("shop",)})
    async with serving(embedder, folder, keys=tmp_path / "keys.json") as server:

        def shown(key: str) -> dict:
            return {"headers": {"authorization": f"Bearer {key}"}}

        assert await refusal(server, FIRST) == (401, "UNAUTHENTICATED")
        assert await refusal(server, FIRST, **shown(other)) == (403, "PERMISSION_DENIED")
        assert await refusal(server, FIRST, **shown(writer)) == (403, "PERMISSION_DENIED")
        assert (await look(server, FIRST, **shown(good))).content == kept(folder)[FIRST]


async def write(server, entry_id: str, data: bytes, **said) -> None:
    entry = {"entryId": entry_id, "image": base64.b64encode(data).decode(), **said}
    code, answer = await server.ask("POST", "/v1/galleries/shop/entries", json={"entries": [entry]})
    assert code == 200, answer


async def test_what_is_written_through_a_server_has_one_where_that_is_allowed(embedder, folder):
    path = "t%C3%BCr%207/%C3%A4%2541/%E6%97%A5%E6%9C%AC%20%231%3F.png"
    async with serving(embedder, folder, settings=told(folder, thumbnails=True)) as server:
        await write(server, ODD, png(7), pid="7")
        assert (await look(server, path)).content == shrink(png(7))
        await server.ask(
            "PATCH", f"/v1/galleries/shop/entries/{path}", json={"entry": {"pid": "8"}, "updateMask": "pid"}
        )
        assert (await look(server, path)).content == shrink(png(7))
        await write(server, ODD, png(8))
        assert (await look(server, path)).content == shrink(png(8))
        await write(server, "door/thumbnail", png(9))
        assert (await look(server, "door/thumbnail")).content == shrink(png(9))
        await server.ask("POST", "/v1/galleries/shop/entries:delete", json={"entryIds": [ODD]})
        assert await refusal(server, path) == (404, "ENTRY_NOT_FOUND")
    assert shrink(png(8)) not in kept(folder).values()


async def test_what_is_written_through_a_server_has_none_where_it_is_not(embedder, folder):
    async with serving(embedder, folder) as server:
        await write(server, "new", png(7))
        assert await refusal(server, "new") == (404, "THUMBNAIL_NOT_FOUND")


def test_a_server_that_only_reads_keeps_none():
    with pytest.raises(ConfigError, match="--thumbnails and --retain write to the galleries, which --read-only"):
        told(Path("g"), thumbnails=True, read_only=True)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of images that may be shown, and things beside it that may not."""
    root = tmp_path / "shown"
    (root / "below").mkdir(parents=True)
    (root / "below" / "7.png").write_bytes(png(7))
    (root / "percent%41.png").write_bytes(png(7))
    (root / "changed.png").write_bytes(png(8))
    (root / "text.png").write_bytes(b"no image")
    (root / "huge.png").write_bytes(huge_png())
    (root / "long.png").write_bytes(png(7) + bytes(17 * 2**20))
    os.mkfifo(root / "pipe.png")
    (tmp_path / "secret.png").write_bytes(png(7))
    (root / "way out.png").symlink_to(tmp_path / "secret.png")
    (root / "way back.png").symlink_to(root / "below" / "7.png")
    (root / "out").symlink_to(tmp_path)
    (root / "circle.png").symlink_to(root / "circle.png")
    (tmp_path / "shown too").mkdir()
    (tmp_path / "shown too" / "7.png").write_bytes(png(7))
    return root


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("shown/below/7.png", True),
        ("shown/percent%2541.png", True),
        ("shown/way back.png", True),
        ("shown/../shown/below/7.png", True),
        ("secret.png", False),
        ("shown/../secret.png", False),
        ("shown/way out.png", False),
        ("shown/out/secret.png", False),
        ("shown too/7.png", False),
        ("shown/circle.png", False),
        ("shown/nothing.png", False),
        ("shown/below", False),
        ("shown/pipe.png", False),
        ("shown/nul%00.png", False),
        ("shown/changed.png", False),
    ],
)
def test_only_a_source_below_the_root_that_is_what_it_was_is_shown(folder, sources, tmp_path, source, shown):
    with contextlib.closing(open_gallery(folder, write=True)) as gallery:
        entry = Entry("one", source=f"{tmp_path}/{source}")
        gallery.upsert([Record(entry, hashlib.sha256(png(7)).digest(), VECTORS[7])])
        assert gallery.thumbnail("one") is None
        assert gallery.thumbnail("one", sources=sources) == (shrink(png(7)) if shown else None)
        # A path that is not whole is below the root.
        gallery.upsert([Record(Entry("two", source="below/7.png"), hashlib.sha256(png(7)).digest(), VECTORS[8])])
        assert gallery.thumbnail("two", sources=sources) == shrink(png(7))


@pytest.mark.parametrize("name", ["text.png", "huge.png", "long.png"])
def test_a_source_that_is_no_image_within_the_limits_is_not_shown(folder, sources, name):
    with contextlib.closing(open_gallery(folder, write=True)) as gallery:
        content = hashlib.sha256((sources / name).read_bytes()).digest()
        gallery.upsert([Record(Entry("one", source=f"{sources}/{name}"), content, VECTORS[7])])
        assert gallery.thumbnail("one", sources=sources) is None


async def test_a_server_shows_sources_below_the_root_that_it_was_given(embedder, folder, sources, tmp_path):
    with open_writer(folder) as store:
        for number, place in enumerate((sources / "below" / "7.png", tmp_path / "secret.png")):
            content = hashlib.sha256(png(7)).digest()
            store.upsert([Record(Entry(f"n{number}", source=str(place)), content, VECTORS[number])])
    async with serving(embedder, folder, settings=told(folder, sources_root=sources)) as server:
        assert (await look(server, "n0")).content == shrink(png(7))
        assert await refusal(server, "n1") == (404, "THUMBNAIL_NOT_FOUND")
        assert (await look(server, FIRST)).content == kept(folder)[FIRST]
    async with serving(embedder, folder) as server:
        assert await refusal(server, "n0") == (404, "THUMBNAIL_NOT_FOUND")


async def test_while_entries_go_each_answer_is_the_whole_thumbnail_or_none(embedder, folder):
    expected = kept(folder)
    async with serving(embedder, folder) as server:
        seen: set[int] = set()
        gone = asyncio.Event()

        async def watch(name: str) -> None:
            last = False
            while not last:
                last = gone.is_set()
                answer = await look(server, name)
                seen.add(answer.status_code)
                assert answer.content == expected[name] if answer.status_code == 200 else answer.status_code == 404
            assert answer.status_code == 404

        watching = [asyncio.create_task(watch(name)) for name in expected]
        while 200 not in seen:
            await asyncio.sleep(0)
        for name in expected:
            await server.ask("POST", "/v1/galleries/shop/entries:delete", json={"entryIds": [name], "erase": True})
        gone.set()
        await asyncio.gather(*watching)
    assert seen == {200, 404}
    with contextlib.closing(open_gallery(folder)) as gallery:
        assert list(gallery.snapshot.matching(Filter())) == []
