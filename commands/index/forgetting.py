"""reid-index forget: entries are removed so that nothing of them is left in a gallery's files."""

import getpass
import math
import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.asking import NO_ACCESS, Access, Server, hinting
from reidserve.commands.console import DONE, FAILED, Age, Json, print_facts, print_json, progress, warn_lines
from reidserve.commands.index.remote import forget_remotely, refuse_local
from reidserve.commands.place import GalleryFolder
from reidserve.commands.where import Where, read_where
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.index import Filter, Forgotten

UNREACHED = ("snapshots", "exports", "backups", "logs and traces", "the image files that entries were made of")
"""Where something of an entry may be besides its gallery; docs/privacy.md says how to deal with each."""


def forget(
    gallery: GalleryFolder,
    *,
    pids: Annotated[list[str] | None, Parameter(name="--pid", negative="", show_default=False)] = None,
    where: Where = None,
    older_than: Age = None,
    yes: Annotated[bool, Parameter(negative="")] = False,
    audit: Annotated[Path | None, Parameter(show_default=False)] = None,
    server: Server = None,
    access: Access = NO_ACCESS,
    json: Json = False,
) -> int:
    """Remove entries so that nothing of them is left: no row, embedding, thumbnail, derived code, free page or log.

    The gallery is written anew, which takes its size again on the disk meanwhile. What was cut off is finished by the
    same command. It cannot reach copies elsewhere, and says which there may be. A damaged entry that may have been
    meant is named, and the exit code is 1: reid-index remove takes it by its id, and forget again what is left of it.

    Args:
        gallery: The gallery's folder.
        pids: An identity to forget; may be given several times. With the other conditions all must hold.
        older_than: Entries whose timestamp is longer ago than this, such as 30d, 12h or 8w; those without one stay.
        yes: Remove more than half of the gallery for its age: the clock is right.
        audit: A file to which what was done is appended, a JSON line each.
    """
    from reidserve.datasets import path_to_text
    from reidserve.index import format_filter

    condition = _condition(pids, where, older_than)
    guarded = older_than is not None and not yes
    if server is not None:
        refuse_local(audit=audit is not None)
        return forget_remotely(str(gallery), condition, server, access, guarded=guarded, json=json)
    with hinting(), progress("forgetting"):
        done = _forget(gallery, condition, audit, guarded=guarded)
    facts = {"removed": len(done.entries), "thumbnails": done.thumbnails, "without time": done.timeless}
    if json:
        print_json(
            {
                "gallery": path_to_text(gallery),
                "where": format_filter(condition),
                "removed": len(done.entries),
                "thumbnails": done.thumbnails,
                "timeless": done.timeless,
                "ids": [entry.id for entry in done.entries],
                "sources": [entry.source for entry in done.entries if entry.source is not None],
                "damaged": done.damaged,
                "generation": done.generation,
                "unreached": UNREACHED,
            }
        )
    else:
        warn_lines([f"entry {name} is damaged, and may have been meant" for name in done.damaged])
        print_facts({"forgot": path_to_text(gallery), **facts, "not reached": ", ".join(UNREACHED)})
    return FAILED if done.damaged else DONE


def _condition(pids: list[str] | None, where: str | None, older_than: int | None) -> "Filter":
    from reidserve.index import Filter
    from reidserve.index.filters import all_of

    condition = read_where(where)
    said = [condition] if condition is not None else []
    if pids:
        said.append(Filter(pids=frozenset(pids)))
    if older_than is not None:
        said.append(Filter(until=int((time.time() - older_than) * 1e6)))
    if not said:
        raise UsageError("expected what to forget: --pid, --where or --older-than")
    return all_of(said)


def _forget(gallery: Path, condition: "Filter", audit: Path | None, *, guarded: bool) -> "Forgotten":
    """Forget, and write down by whom, where that is asked for."""
    from reidserve.index import forget_entries
    from reidserve.index.forgetting import MOST_SHARE
    from reidserve.server.call import Call, Caller
    from reidserve.server.guard.audit import Audit

    share = MOST_SHARE if guarded else 1.0
    if audit is None:
        return forget_entries(gallery, condition, most_share=share)
    call = Call("reid-index forget", os.urandom(16).hex(), Caller(getpass.getuser(), {}), math.inf)
    name = gallery.absolute().name.removesuffix(".gallery")
    with closing(Audit(audit)) as log:
        done = forget_entries(
            gallery,
            condition,
            most_share=share,
            on_removed=lambda written: log.record(
                call, "forget", name, changed=written.changed, generation=written.generation
            ),
        )
        log.record(call, "erase", name, erased=True)
    return done
