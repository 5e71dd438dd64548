"""reid-index remove, update: entries go, or something else is said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.asking import NO_ACCESS, Access, Server, hinting, to_time
from reidserve.commands.console import DONE, Json, print_facts, print_json, print_lines, progress
from reidserve.commands.index.facts import (
    Camid,
    Pid,
    Set,
    Timestamp,
    check_chosen,
    read_attributes,
    read_moment,
)
from reidserve.commands.index.remote import remove_remotely, update_remotely
from reidserve.commands.place import read_place
from reidserve.commands.where import Where, read_where
from reidserve.errors import EntryNotFoundError, UsageError

if TYPE_CHECKING:
    from reidserve.datasets import Attribute
    from reidserve.index import Entry, Filter
    from reidserve.index.seam import Rows

UPDATE_ROWS = 1000

_CLEARED = ("pid", "camid", "timestamp")


def remove(
    gallery: str,
    *ids: str,
    where: Where = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    server: Server = None,
    access: Access = NO_ACCESS,
    json: Json = False,
) -> int:
    """Remove entries from a gallery, by their ids or by a filter, all or none of them.

    An id that is not there is no failure: it is counted.

    Args:
        gallery: The gallery's folder, or milvus://HOST:PORT/NAME.
        ids: Ids of entries.
        dry_run: Only list what would be removed.
    """
    from reidserve.index import format_filter
    from reidserve.index.opening import reading, writing
    from reidserve.index.place import place_text

    check_chosen(ids, where)
    condition = read_where(where)
    if server is not None:
        return remove_remotely(gallery, ids, condition, server, access, dry_run=dry_run, json=json)
    place = read_place(gallery)
    with hinting(), reading(place) if dry_run else writing(place) as store:
        if condition is None:
            there = store.ids()
            chosen = [name for name in dict.fromkeys(ids) if name in there]
        else:
            chosen = [entry.id for entry in _matching(store, condition)]
        missing = len(set(ids)) - len(chosen) if condition is None else 0
        # As it was understood: a bare number, for one, is microseconds and no date.
        meant = None if condition is None else format_filter(condition)
        removed = 0 if dry_run else store.delete(chosen).changed
        entries, generation = store.count(), store.generation()
    if json:
        facts = {
            "gallery": place_text(place),
            "where": meant,
            "removed": removed,
            "missing": missing,
            "ids": chosen,
        }
        print_json({**facts, "dry_run": dry_run, "entries": entries, "generation": generation})
    elif dry_run:
        where_said = "" if meant is None else f" where {meant}"
        print_lines([*chosen, f"{len(chosen)} of {entries} entries would be removed{where_said}"])
    else:
        facts = {"changed": place_text(place), "removed": removed, "not there": missing}
        print_facts({**facts, "entries": entries, "generation": generation})
    return DONE


def update(
    gallery: str,
    *ids: str,
    where: Where = None,
    pid: Pid = None,
    camid: Camid = None,
    timestamp: Timestamp = None,
    attributes: Set = None,
    unset: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None,
    server: Server = None,
    access: Access = NO_ACCESS,
    json: Json = False,
) -> int:
    """Say something else of entries, chosen by their ids or by a filter; nothing is embedded.

    A thousand entries are one transaction; through a server each is one. An update that was cut off is made whole by
    running it again.

    Args:
        gallery: The gallery's folder, or milvus://HOST:PORT/NAME.
        ids: Ids of entries.
        unset: Forget an attribute, or pid, camid or timestamp; may be given several times.
    """
    from reidserve.index.opening import writing
    from reidserve.index.place import place_text

    check_chosen(ids, where)
    condition = read_where(where)
    moment = read_moment(timestamp)
    labels = {"pid": pid, "camid": camid, "timestamp": moment}
    said: dict[str, str | int | None] = {label: value for label, value in labels.items() if value is not None}
    attributes_said, forgotten = read_attributes(attributes), unset or []
    if not (said or attributes_said or forgotten):
        raise UsageError("expected what to say: --pid, --camid, --timestamp, --set or --unset")
    if both := {*said, *attributes_said} & set(forgotten):
        raise UsageError(f"--unset {min(both)} forgets what is set in the same command")
    if server is not None:
        return update_remotely(
            gallery,
            ids,
            condition,
            server,
            access,
            said={"pid": pid, "camid": camid, "timestamp": to_time(moment)},
            attributes=attributes_said,
            forgotten=forgotten,
            json=json,
        )
    said |= {label: None for label in _CLEARED if label in forgotten}
    place = read_place(gallery)
    with hinting(), writing(place) as store, progress("updating") as advance:
        chosen = _matching(store, condition) if condition is not None else _found(store, ids)
        entries = iter(_changed(entry, said, attributes_said, forgotten) for entry in chosen)
        changed = done = 0
        while batch := list(islice(entries, UPDATE_ROWS)):
            changed += store.update(batch).changed
            done += len(batch)
            advance(done, len(chosen))
        generation = store.generation()
    facts = {"updated": changed, "chosen": len(chosen), "generation": generation}
    if json:
        print_json({"gallery": place_text(place), **facts})
    else:
        print_facts({"changed": place_text(place), **facts})
    return DONE


def _matching(store: "Rows", where: "Filter") -> "list[Entry]":
    from reidserve.index.storage.rows import Stored

    return [found.entry for found in store.scan() if isinstance(found, Stored) and where.accepts(found.entry)]


def _found(store: "Rows", ids: Sequence[str]) -> "list[Entry]":
    found = []
    for name in dict.fromkeys(ids):
        stored = store.get(name)
        if stored is None:
            raise EntryNotFoundError(f"the gallery has no entry {name!r}; nothing was changed")
        found.append(stored.entry)
    return found


def _changed(
    entry: "Entry", said: Mapping[str, object], attributes: "Mapping[str, Attribute]", forgotten: Sequence[str]
) -> "Entry":
    kept = {name: value for name, value in entry.attributes.items() if name not in forgotten}
    return replace(entry, **said, attributes={**kept, **attributes})  # type: ignore[arg-type]
