"""reid-index info, verify, compact: what a gallery is, whether it is whole, and what it takes."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.console import (
    DONE,
    FAILED,
    Device,
    Index,
    Json,
    Precision,
    print_facts,
    print_json,
    progress,
    warn_engine,
    warn_lines,
    write_bytes,
)
from reidserve.commands.place import GalleryFolder, read_model, read_place, refuse_index
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.index import Snapshot
    from reidserve.index.verify import Repair, Verification


def info(gallery: str, *, kind: Index = "auto", json: Json = False) -> None:
    """Describe a gallery.

    Args:
        gallery: The gallery's folder, or milvus://HOST:PORT/NAME.
    """
    from reidserve.index import open_gallery
    from reidserve.index.place import place_text
    from reidserve.index.storage.store import BUILDING, STATE

    place = read_place(gallery)
    refuse_index(place, kind)
    opened = open_gallery(place, kind=kind)
    snapshot = opened.snapshot
    with closing(opened.rows()) as rows:
        building = rows.note(STATE) == BUILDING
    pids, camids, attributes = _labels(snapshot)
    facts: dict[str, object] = {
        "gallery": place_text(place),
        "entries": len(snapshot),
        "pids": pids,
        "camids": camids,
        "attributes": attributes,
        "dim": opened.origin.dim,
        "identity": opened.origin.identity,
        "engine": opened.origin.engine,
        "generation": snapshot.generation,
        "damaged": len(snapshot.damaged),
        "index": snapshot.kind,
    }
    taken = _taken(place, len(snapshot), opened.origin.dim) if isinstance(place, Path) else {}
    opened.close()
    if json:
        print_json({**facts, "building": building, **taken})
    else:
        if building:
            warn_lines(["a build or import is under way or was cut off: run it again to make the gallery whole"])
        facts["attributes"] = ", ".join(attributes) or "none"
        if taken:
            facts["on disk"] = write_bytes(taken["disk_bytes"])
            facts["in memory"] = f"{write_bytes(taken['memory_bytes'])} where it is served"
        print_facts(facts)


def _taken(folder: Path, entries: int, dim: int) -> dict[str, int]:
    """The bytes that a folder's gallery takes on the disk, and in the memory of who serves it."""
    from reidserve.index.search.blocks import entry_bytes
    from reidserve.index.storage.database import gallery_bytes

    return {"disk_bytes": gallery_bytes(folder), "memory_bytes": entries * entry_bytes(dim)}


def _labels(snapshot: "Snapshot") -> tuple[int, int, list[str]]:
    """How many pids and cameras there are, and which attributes."""
    pids: set[str | None] = set()
    camids: set[str | None] = set()
    attributes: set[str] = set()
    for entry in snapshot.entries():
        pids.add(entry.pid)
        camids.add(entry.camid)
        attributes |= entry.attributes.keys()
    return len(pids - {None}), len(camids - {None}), sorted(attributes)


def verify(
    gallery: str,
    *,
    repair: Annotated[bool, Parameter(negative="")] = False,
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    precision: Precision = "fp32",
    device: Device = "cpu",
    json: Json = False,
) -> int:
    """Read everything in a gallery and name what is wrong; the exit code is 1 while the database is damaged.

    Without --repair nothing is changed, and a server or a writer may go on meanwhile. --repair makes counters and
    search trees anew, and with --model embeds the images of damaged entries again: an entry is repaired where its image
    is unchanged and the embedding is to the bit the one that was stored; where none is stored any more, the image will
    do. What is left is listed: remove it with reid-index remove, or write it anew with reid-index build or add. A
    damaged file in cache/ is named and no damage: the next process that opens the gallery makes it anew. A gallery in
    Milvus is read and held against itself too, and not repaired.

    Args:
        gallery: The gallery's folder, or milvus://HOST:PORT/NAME.
        repair: Repair what can be.
        model: The artifact that the gallery was built with, or triton://host:8001/name, for --repair.
    """
    from reidserve.embed import open_embedder
    from reidserve.index.place import place_text
    from reidserve.index.verify import Repair, repair_gallery, verify_gallery

    place = read_place(gallery)
    if model is not None and not repair:
        raise UsageError("--model is for --repair")
    if repair and not isinstance(place, Path):
        raise UsageError(f"--repair is of folders; write what is wrong in {place} anew with reid-index build or copy")
    embedder = None if model is None else open_embedder(read_model(model), precision=precision, device=device)
    if embedder is not None:
        warn_engine(embedder.engine, device=device, unverified=embedder.unverified)
    with progress("verifying") as advance:
        found = verify_gallery(place, progress=advance)
    done = Repair()
    if repair and isinstance(place, Path) and (found.cache_faults or not found.clean):
        with progress("repairing") as advance:
            done = repair_gallery(place, found, embedder, progress=advance)
        with progress("verifying") as advance:
            found = verify_gallery(place, progress=advance)
    if json:
        print_json(
            {
                "gallery": place_text(place),
                "clean": found.clean,
                "entries": found.entries,
                "generation": found.generation,
                "faults": found.faults,
                "damaged": found.damaged,
                "cache_faults": found.cache_faults,
                "repaired": done.repaired,
                "left": done.left,
            }
        )
    else:
        _tell(place_text(place), found, done)
    return DONE if found.clean else FAILED


def _tell(gallery: str, found: "Verification", done: "Repair") -> None:
    reasons = dict(done.left)
    damaged = [f"entry {damage.id}: {reasons.get(damage.id, damage.fault)}" for damage in found.damaged]
    warn_lines([*found.faults, *damaged, *found.cache_faults])
    verdict = "clean"
    if found.damaged:
        verdict = f"{len(found.damaged)} damaged: --repair --model MODEL, reid-index remove, or build again"
    elif found.faults:
        verdict = "the database contradicts itself: --repair, or restore a snapshot"
    facts = {"gallery": gallery, "entries": found.entries, "generation": found.generation}
    print_facts({**facts, "repaired": len(done.repaired), "verdict": verdict})


def compact(gallery: GalleryFolder, *, json: Json = False) -> None:
    """Give the space of what was removed back to the disk.

    Meanwhile the gallery is written twice more: into a temporary file (in SQLITE_TMPDIR, else /var/tmp) and into its
    write-ahead log. Derived index files go too; the next process that opens the gallery makes them again.

    Args:
        gallery: The gallery's folder.
    """
    from reidserve.datasets import path_to_text
    from reidserve.index import open_writer
    from reidserve.index.storage.cache import remove_cache
    from reidserve.index.storage.database import gallery_bytes

    with open_writer(gallery) as store, progress("compacting"):
        before = gallery_bytes(gallery)
        store.compact()
        remove_cache(gallery)
    after = gallery_bytes(gallery)
    if json:
        print_json({"gallery": path_to_text(gallery), "bytes_before": before, "bytes_after": after})
    else:
        print_facts({"wrote": path_to_text(gallery), "before": write_bytes(before), "after": write_bytes(after)})
