"""reid-index add, remove, update through a server that has the gallery open."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from reidserve.commands.asking import Access, asked, name_on_server, to_microseconds
from reidserve.commands.console import (
    DONE,
    FAILED,
    SHOWN_FAILURES,
    print_facts,
    print_json,
    print_lines,
    progress,
    warn_failures,
)
from reidserve.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from reidserve.client import Client, Entry, NewEntry
    from reidserve.datasets import Attribute
    from reidserve.index import Entry as LocalEntry
    from reidserve.index import Filter


def add_remotely(gallery: str, entries: "Sequence[NewEntry]", server: str, access: Access, *, json: bool) -> int:
    """Send entries to a server; what cannot be written is left out and named."""
    name = name_on_server(gallery)
    with access.connect(server) as client, progress("sending") as advance:
        done = client.import_entries(entries, gallery=name, progress=lambda count: advance(count, len(entries)))
    failures = [(fault.entry_id, str(fault.error)) for fault in done.faults]
    ids = [entry.entry_id for entry in entries]
    kept = done.entries - done.written - len(failures)
    facts = {"entries": done.entries, "written": done.written, "unchanged": kept}
    if json:
        print_json(
            {
                "server": server,
                "gallery": name,
                **facts,
                "failures": failures,
                "generation": done.generation,
                "ids": ids,
            }
        )
    else:
        warn_failures(failures)
        shown = ", ".join(ids[:SHOWN_FAILURES] + ["..."] * (len(ids) > SHOWN_FAILURES))
        print_facts({"wrote": f"{name} on {server}", **facts, "ids": shown, "left out": len(failures)})
    return FAILED if failures else DONE


def remove_remotely(
    gallery: str,
    ids: Sequence[str],
    condition: "Filter | None",
    server: str,
    access: Access,
    *,
    dry_run: bool,
    json: bool,
) -> int:
    """Let a server remove entries, or list what it would."""
    name, missing = name_on_server(gallery), 0
    with access.connect(server) as client:
        if dry_run:
            chosen = [entry.entry_id for entry in _chosen(client, name, ids, condition, must_be=False)]
            facts: Mapping[str, object] = {"removed": 0, "ids": chosen}
            missing = 0 if condition is not None else len(set(ids)) - len(chosen)
        else:
            chosen = []
            done = client.delete(list(dict.fromkeys(ids)), where=asked(condition), gallery=name)
            facts = {"removed": done.deleted, "generation": done.generation}
            missing = 0 if condition is not None else len(set(ids)) - done.deleted
    if json:
        print_json({"server": server, "gallery": name, **facts, "missing": missing, "dry_run": dry_run})
    elif dry_run:
        print_lines([*chosen, f"{len(chosen)} entries would be removed"])
    else:
        print_facts({"changed": f"{name} on {server}", **facts, "not there": missing})
    return DONE


def forget_remotely(
    gallery: str, condition: "Filter", server: str, access: Access, *, guarded: bool, json: bool
) -> int:
    """Let a server remove entries and clear its files of them; guarded, no more than a part of the gallery."""
    from reidserve.index import format_filter
    from reidserve.index.forgetting import MOST_SHARE, check_share

    name = name_on_server(gallery)
    with access.connect(server) as client:
        if guarded:
            entries = list(client.entries(name))
            check_share(sum(condition.accepts(_local(entry)) for entry in entries), len(entries), most=MOST_SHARE)
        done = client.delete(where=asked(condition), erase=True, gallery=name)
    facts = {"removed": done.deleted, "generation": done.generation}
    if json:
        print_json({"server": server, "gallery": name, "where": format_filter(condition), **facts})
    else:
        print_facts({"forgot": f"{name} on {server}", **facts})
    return DONE


def update_remotely(
    gallery: str,
    ids: Sequence[str],
    condition: "Filter | None",
    server: str,
    access: Access,
    *,
    said: Mapping[str, str | datetime | None],
    attributes: "Mapping[str, Attribute]",
    forgotten: Sequence[str],
    json: bool,
) -> int:
    """Let a server say something else of entries, one after the other."""
    name, changed, generation = name_on_server(gallery), 0, 0
    forget = [field if field in ("pid", "camid", "timestamp") else f"attributes.{field}" for field in forgotten]
    with access.connect(server) as client, progress("updating") as advance:
        chosen = _chosen(client, name, ids, condition)
        for done, entry in enumerate(chosen, start=1):
            after = client.update(entry.entry_id, attributes=attributes, forget=forget, gallery=name, **said)  # type: ignore[arg-type]
            # What says the same already is not written again.
            changed += after.entry.row != entry.row
            generation = max(generation, after.generation)
            advance(done, len(chosen))
    facts = {"updated": changed, "chosen": len(chosen), "generation": generation}
    if json:
        print_json({"server": server, "gallery": name, **facts})
    else:
        print_facts({"changed": f"{name} on {server}", **facts})
    return DONE


def refuse_local(**given: bool) -> None:
    """See that nothing was said of what only a command does that opens the gallery itself.

    Raises:
        UsageError: something was.
    """
    if flags := [f"--{flag.replace('_', '-')}" for flag, said in given.items() if said]:
        raise UsageError(f"{', '.join(flags)} and --server do not go together: the server has its own")


def _chosen(
    client: "Client", gallery: str, ids: Sequence[str], condition: "Filter | None", *, must_be: bool = True
) -> "list[Entry]":
    """The entries of these ids, or those that a filter accepts."""
    if condition is not None:
        return [entry for entry in client.entries(gallery) if condition.accepts(_local(entry))]
    found = []
    for name in dict.fromkeys(ids):
        try:
            found.append(client.entry(name, gallery=gallery))
        except NotFoundError as error:
            if must_be or error.reason != "ENTRY_NOT_FOUND":
                raise
    return found


def _local(entry: "Entry") -> "LocalEntry":
    from reidserve.index import Entry as LocalEntry

    time = to_microseconds(entry.timestamp)
    return LocalEntry(entry.entry_id, entry.pid, entry.camid, time, entry.source, entry.attributes)
