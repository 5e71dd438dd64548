"""reid-index export, import, snapshot, restore, copy: galleries to other programs and to other places, and back."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.asking import hinting
from reidserve.commands.console import (
    DONE,
    FAILED,
    Json,
    Memory,
    print_facts,
    print_json,
    progress,
    warn_failures,
    warn_lines,
)
from reidserve.commands.place import GalleryFolder, read_place
from reidserve.commands.where import Where, read_where
from reidserve.errors import OutputExistsError

if TYPE_CHECKING:
    from reidserve.index.verify import Verification


def export(gallery: GalleryFolder, out: Path, *, where: Where = None, json: Json = False) -> int:
    """Write a gallery into a new folder for other programs: embeddings.safetensors and entries.jsonl.

    The tensor "embeddings" is float32 (N, dim); line n of the other file says what row n is: id, pid, camid,
    timestamp (microseconds since 1970 UTC), source, attributes, content_sha256. Both are of one generation, whatever is
    written meanwhile. Damaged rows are left out and named; the exit code is then 1. While it is written, the vectors
    take twice their room.

    Args:
        gallery: The gallery's folder.
        out: The folder to write; it must not exist.
    """
    from reidserve.datasets import path_to_text
    from reidserve.index.exchange import EMBEDDINGS_FILE, ENTRIES_FILE, export_gallery

    condition = read_where(where)
    with progress("exporting") as advance:
        exported = export_gallery(gallery, out, where=condition, progress=advance)
    if json:
        print_json({"wrote": path_to_text(out), **asdict(exported)})
    else:
        warn_failures([(damage.id, damage.fault) for damage in exported.damaged])
        facts = {"wrote": path_to_text(out), "files": f"{EMBEDDINGS_FILE}, {ENTRIES_FILE}"}
        left_out = len(exported.damaged)
        print_facts({**facts, "entries": exported.entries, "left out": left_out, "generation": exported.generation})
    return FAILED if exported.damaged else DONE


def import_(
    gallery: GalleryFolder,
    source: Path,
    *,
    model: Annotated[Path | None, Parameter(show_default=False)] = None,
    normalise: Annotated[bool, Parameter(negative="")] = False,
    max_memory: Memory = None,
    json: Json = False,
) -> int:
    """Read what reid-index export wrote, or another program in its place, into a gallery, new or there already.

    Everything is checked before anything is written, and a wrong line is named by its number. Entries are written by
    their ids; what is there already stays, so an import that was cut off is made whole by running it again. A line
    needs an id only; a timestamp may be ISO 8601 with a time zone.

    Args:
        gallery: The gallery's folder; it is made if there is none.
        source: A folder with embeddings.safetensors and entries.jsonl, or a .safetensors file beside a .jsonl file of
            its name.
        model: The artifact that the embeddings were computed by, where the file does not say it.
        normalise: Divide vectors by their length; else one that is not of unit length is refused.
    """
    from reidserve.datasets import path_to_text
    from reidserve.embed import read_artifact
    from reidserve.index.exchange import import_gallery

    identity = None if model is None else read_artifact(model).contract.identity
    with progress("importing") as advance:
        imported = import_gallery(
            source, gallery, identity=identity, normalise=normalise, max_memory=max_memory, progress=advance
        )
    if json:
        print_json({"gallery": path_to_text(gallery), **asdict(imported)})
    else:
        facts = {"wrote": path_to_text(gallery), "entries": imported.entries, "written": imported.written}
        more = {"unchanged": imported.kept, "normalised": imported.normalised, "engine": imported.engine}
        print_facts({**facts, **more, "generation": imported.generation})
    return DONE


def snapshot(gallery: GalleryFolder, out: GalleryFolder, *, json: Json = False) -> int:
    """Copy a gallery as of one generation, while anything serves or writes it; the copy is a gallery itself.

    The copy is read and verified; the exit code is 1 where something in it is wrong (it was so in the gallery).

    Args:
        gallery: The gallery's folder.
        out: The copy's folder; it must not exist.
    """
    return _copy(gallery, out, json=json)


def restore(source: GalleryFolder, gallery: GalleryFolder, *, json: Json = False) -> int:
    """Copy a snapshot to a name that is free, and verify it.

    A gallery is never replaced, because a server may have it open: restore under another name and start the server
    with that one.

    Args:
        source: What reid-index snapshot wrote.
        gallery: The gallery to write; it must not exist.
    """
    from reidserve.datasets import path_to_text

    if gallery.exists() or gallery.is_symlink():
        raise OutputExistsError(
            f"{path_to_text(gallery)} is there already and may be open in a server: restore under a name that is free "
            "and point reid-serve --gallery there"
        )
    return _copy(source, gallery, json=json)


def copy(source: str, out: str, *, json: Json = False) -> int:
    """Move a gallery between a folder and Milvus, either way, or between two of a kind, and read back all of it.

    Each entry, the hash of its image and its embedding, bit for bit, is held against the gallery's before the copy
    opens. What is written to the gallery meanwhile is copied too. A copy that was cut off goes on where it
    stopped when it is run again; run again after its end, it does what was written to the gallery since. The gallery is
    only read. Damaged entries are left out and named; the exit code is then 1.

    Args:
        source: The gallery, a folder or milvus://HOST:PORT/NAME.
        out: Where the copy is to be, the one or the other; nothing may be there but a copy of this gallery.
    """
    from reidserve.index.copying import copy_rows
    from reidserve.index.place import place_text

    one, other = read_place(source), read_place(out)
    with hinting(), progress("copying, then reading back") as advance:
        copied = copy_rows(one, other, progress=advance)
    facts = {"wrote": place_text(other), "copied": place_text(one)}
    if json:
        print_json({**facts, **asdict(copied)})
    else:
        warn_failures([(damage.id, damage.fault) for damage in copied.damaged])
        counts = {"written": copied.written, "unchanged": copied.kept, "removed": copied.removed}
        verified = f"{copied.entries} entries, as in generation {copied.of} of the gallery"
        left_out = len(copied.damaged)
        print_facts({**facts, **counts, "left out": left_out, "generation": copied.generation, "verified": verified})
    return FAILED if copied.damaged else DONE


def _copy(source: Path, out: Path, *, json: bool) -> int:
    from reidserve.datasets import path_to_text
    from reidserve.index.storage.database import copy_database
    from reidserve.index.verify import verify_gallery

    with progress("copying"):
        copy_database(source, out)
    with progress("verifying") as advance:
        found: Verification = verify_gallery(out, progress=advance)
    facts = {"wrote": path_to_text(out), "entries": found.entries, "generation": found.generation}
    if json:
        print_json({**facts, "faults": found.faults, "damaged": found.damaged})
    else:
        warn_lines([*found.faults, *(f"{damage.id}: {damage.fault}" for damage in found.damaged)])
        print_facts({**facts, "verified": "clean" if found.clean else "damaged"})
    return DONE if found.clean else FAILED
