"""reid-index build, add, rebuild: images become entries."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from reidserve.commands.asking import NO_ACCESS, Access, Server, hinting, to_time
from reidserve.commands.console import (
    DONE,
    FAILED,
    SHOWN_FAILURES,
    Device,
    Json,
    Memory,
    Pattern,
    Precision,
    print_facts,
    print_json,
    progress,
    quiet_grpc,
    warn_engine,
    warn_failures,
    warn_lines,
)
from reidserve.commands.index.facts import (
    Camid,
    Pid,
    Set,
    Timestamp,
    read_attributes,
    read_moment,
)
from reidserve.commands.index.remote import add_remotely, refuse_local
from reidserve.commands.place import read_model, read_place, refuse_memory, refuse_thumbnails
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.datasets import Crop
    from reidserve.embed import BulkEmbedder
    from reidserve.index import BuildReport
    from reidserve.index.place import Place


_MODEL = "model"

Thumbnails = Annotated[
    bool,
    Parameter(
        negative="",
        help="Keep a small picture of each image in the gallery, for the console; it is personal data where the "
        "image is.",
    ),
]


def build(
    crops: Path,
    *,
    model: str = _MODEL,
    out: Annotated[str | None, Parameter(show_default=False)] = None,
    pattern: Pattern = None,
    layout: Literal["auto", "market1501", "dukemtmc", "cuhk03np", "veri776", "folders"] = "auto",
    precision: Precision = "fp32",
    device: Device = "cpu",
    prune: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    thumbnails: Thumbnails = False,
    max_memory: Memory = None,
    ray: Annotated[str | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> int:
    """Embed the images below a folder (or of a CSV table) into a gallery, new or there already.

    Into a gallery that is there, what is new or changed is embedded and the rest stays; nothing is embedded twice. The
    folder has the last word on its images: what reid-index update said of them goes.
    An image that cannot be read is reported and left out; the exit code is then 1. A build that was cut off goes on
    where it stopped when it is run again.

    Args:
        crops: A folder of JPEG, PNG, WebP or BMP crops, or a .csv with the columns path, pid, camid, timestamp.
        model: The artifact that embeds them, as reid-export wrote it; or triton://host:8001/name, where another server
            computes it.
        out: The gallery to write, a folder or milvus://HOST:PORT/NAME; by default the folder's name with .gallery.
        layout: What file names mean; auto knows the names of Market-1501, DukeMTMC-reID and VeRi-776 and labels
            nothing else. folders: the first folder's name is the pid.
        prune: Remove every entry that is not among these images, whoever added it.
        force: Take over a gallery that was built from another folder.
        ray: Embed on the Ray cluster at HOST:PORT, of which this machine is a node, a worker for each processor (or
            GPU, as --device says); local makes one of this machine. The gallery is the same. Needs the extra ray.
    """
    from reidserve.datasets import read_crops
    from reidserve.index import build_gallery
    from reidserve.index.place import place_text

    found = read_crops(crops, pattern=pattern, layout=layout)
    place = read_place(out) if out is not None else Path(f"{crops.resolve().name.removesuffix('.csv')}.gallery")
    refuse_memory(place, max_memory)
    refuse_thumbnails(place, thumbnails)
    root = crops if crops.is_dir() else crops.parent
    with _opened(model, ray, precision, device) as (embedder, over):
        with progress(", ".join(["embedding", *(f"{count} {name}" for name, count in over.items())])) as advance:
            report = build_gallery(
                found,
                root,
                place,
                embedder,
                prune=prune,
                force=force,
                thumbnails=thumbnails,
                max_memory=max_memory,
                progress=advance,
            )
        told = _told_of(embedder, place)
    gone = "" if prune or not report.gone else f" ({report.gone} entries are no longer among the images: --prune)"
    return _tell(
        {"gallery": place_text(place), **told, **over},
        report,
        {"removed": f"{report.removed}{gone}", "labels": _labels(found), **over},
        json=json,
    )


def add(
    gallery: str,
    image: Annotated[Path, Parameter(name="IMAGE")],
    *images: Path,
    model: str = _MODEL,
    pid: Pid = None,
    camid: Camid = None,
    timestamp: Timestamp = None,
    attributes: Set = None,
    name: Annotated[str | None, Parameter(name="--id", show_default=False)] = None,
    root: Annotated[Path | None, Parameter(show_default=False)] = None,
    precision: Precision = "fp32",
    device: Device = "cpu",
    thumbnails: Thumbnails = False,
    max_memory: Memory = None,
    server: Server = None,
    access: Access = NO_ACCESS,
    json: Json = False,
) -> int:
    """Add single images to a gallery; an entry of the same id is replaced where it differs.

    What is said with --pid, --camid, --timestamp and --set is said of all of them.

    Args:
        gallery: The gallery's folder, or milvus://HOST:PORT/NAME.
        image: An image file.
        images: More of them.
        model: The artifact that the gallery was built with, or triton://host:8001/name.
        name: The id of the entry, where it is one image; else ids are paths.
        root: Ids are the paths below this folder; by default the one the gallery was built from, and an image outside
            it goes by its absolute path. In a gallery that was never built from a folder, and through a server, ids
            are the paths as given.
    """
    from reidserve.datasets import path_to_text
    from reidserve.embed import open_embedder
    from reidserve.index import Entry, Item, add_images
    from reidserve.index.place import place_text

    paths = (image, *images)
    if name is not None and (len(paths) > 1 or root is not None):
        raise UsageError("--id names one image, without --root")
    moment, said = read_moment(timestamp), read_attributes(attributes)
    if server is not None:
        quiet_grpc()
        from reidserve.client import NewEntry

        refuse_local(
            model=model != _MODEL,
            precision=precision != "fp32",
            device=device != "cpu",
            thumbnails=thumbnails,
            max_memory=max_memory is not None,
        )
        names = [name] if name is not None else _ids_below(paths, root)
        time = to_time(moment)
        sent = [
            NewEntry(name, path, None, pid, camid, time, path_to_text(path.absolute()), said)
            for path, name in zip(paths, names, strict=True)
        ]
        return add_remotely(gallery, sent, server, access, json=json)
    place = read_place(gallery)
    refuse_memory(place, max_memory)
    refuse_thumbnails(place, thumbnails)
    names = [name] if name is not None else _ids(paths, place, root)
    embedder = open_embedder(read_model(model), precision=precision, device=device)
    items = [
        Item(path, Entry(name, pid, camid, moment, path_to_text(path.absolute()), said))
        for path, name in zip(paths, names, strict=True)
    ]
    with hinting(), progress("embedding") as advance:
        report = add_images(items, place, embedder, thumbnails=thumbnails, max_memory=max_memory, progress=advance)
    facts = {"gallery": place_text(place), **_told_of(embedder, place), "ids": names}
    shown = names[:SHOWN_FAILURES] + ["..."] * (len(names) > SHOWN_FAILURES)
    return _tell(facts, report, {"ids": ", ".join(shown)}, json=json)


def rebuild(
    gallery: str,
    *,
    model: str,
    out: str,
    precision: Precision = "fp32",
    device: Device = "cpu",
    json: Json = False,
) -> int:
    """Embed a gallery's images again with another model, into a new gallery, while the old one goes on serving.

    Every entry must have its image where it was, unchanged; those that have not are listed, the exit code is 1, and the
    new gallery does not open until the same command was run again without any: put the images back, or remove the
    entries from the old gallery. What is written to the old gallery meanwhile is done in the new one too; run the same
    command again before the server changes over, and it does the rest. A gallery in Milvus may be rebuilt to its own
    URL: there the entries of each model lie apart, and a server finds those of its own.

    Args:
        gallery: The gallery to rebuild, a folder or milvus://HOST:PORT/NAME; it is only read.
        model: The new artifact, or triton://host:8001/name.
        out: The gallery to write, the one or the other too.
    """
    from reidserve.embed import open_embedder
    from reidserve.index import rebuild_gallery
    from reidserve.index.place import place_text

    old, new = read_place(gallery), read_place(out)
    embedder = open_embedder(read_model(model), precision=precision, device=device)
    with progress("embedding") as advance:
        report = rebuild_gallery(old, new, embedder, progress=advance)
    state = "finished"
    if report.failures:
        state = "unfinished: put these images back or remove the entries from the old gallery, then run this again"
    facts = {"gallery": place_text(new), "rebuilt": place_text(old), **_told_of(embedder, new)}
    return _tell({**facts, "finished": not report.failures}, report, {"rebuild": state}, json=json)


@contextmanager
def _opened(
    model: str, ray: str | None, precision: Precision, device: Device
) -> Iterator["tuple[BulkEmbedder[Any], Mapping[str, int]]"]:
    """What embeds, here or on a cluster, and in the second case by how many workers on how many nodes."""
    if ray is None:
        from reidserve.embed import open_embedder

        yield open_embedder(read_model(model), precision=precision, device=device), {}
        return
    from reidserve.embed.workers import embed_on_cluster

    place = read_model(model)
    if not isinstance(place, Path):
        raise UsageError(f"--ray gives each worker an engine of its own, and {place} is one elsewhere: name a folder")
    with embed_on_cluster(place, ray, precision=precision, device=device) as embedder:
        if not embedder.uniform:
            warn_lines(["the nodes' processors differ: scores of what they embed differ in their last digits"])
        yield embedder, {"workers": embedder.workers, "nodes": embedder.nodes}


def _told_of(embedder: "BulkEmbedder[Any]", place: "Place") -> dict[str, object]:
    """What embedded; a gallery that another engine began, and an engine that is unverified, are warned of."""
    from reidserve.index.opening import reading
    from reidserve.index.place import place_text

    with reading(place, identity=embedder.contract.identity) as rows:
        began = rows.origin.engine
    if began != embedder.engine:
        warn_lines(
            [
                f"{place_text(place)} was begun by {began}, this is {embedder.engine}: scores of the two differ "
                "a little from those of one engine"
            ]
        )
    warn_engine(embedder.engine, unverified=embedder.unverified)
    identity = embedder.contract.identity
    return {"identity": identity, "engine": embedder.engine, "unverified": embedder.unverified}


def _tell(facts: Mapping[str, object], report: "BuildReport", more: Mapping[str, object], *, json: bool) -> int:
    if json:
        print_json({**facts, **asdict(report)})
    else:
        warn_failures(report.failures)
        print_facts(
            {
                "wrote": facts["gallery"],
                "entries": report.entries,
                "embedded": report.embedded,
                "unchanged": report.kept,
                "reused": f"{report.reused} (the embedding of an equal image)",
                **more,
                "left out": len(report.failures),
                "model": f"{str(facts['identity'])[:12]} on {facts['engine']}",
            }
        )
    return FAILED if report.failures else DONE


def _ids(paths: Sequence[Path], place: "Place", root: Path | None) -> list[str]:
    """The ids of images: their paths below a root, or as they are."""
    from reidserve.datasets import path_to_text, text_to_path
    from reidserve.index.opening import reading
    from reidserve.index.storage.store import ROOT

    if root is not None:
        return _ids_below(paths, root)
    with reading(place) as rows:
        built_from = rows.note(ROOT)
    if built_from is None:
        return _ids_below(paths, None)
    folder, names = Path(os.path.abspath(text_to_path(built_from))), []  # noqa: PTH100
    for path in paths:
        absolute = Path(os.path.abspath(path))  # noqa: PTH100
        names.append(path_to_text(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute))
    return names


def _ids_below(paths: Sequence[Path], root: Path | None) -> list[str]:
    """The ids of images: their paths below a root that is said, or as they are."""
    from reidserve.datasets import path_to_text

    if root is None:
        return [path_to_text(path) for path in paths]
    # Not resolved: a link has the name that build gives it.
    folder, names = Path(os.path.abspath(root)), []  # noqa: PTH100
    for path in paths:
        absolute = Path(os.path.abspath(path))  # noqa: PTH100
        if not absolute.is_relative_to(folder):
            raise UsageError(f"{path_to_text(path)} does not lie below --root {path_to_text(root)}")
        names.append(path_to_text(absolute.relative_to(folder)))
    return names


def _labels(crops: "Sequence[Crop]") -> str:
    pids = {crop.pid for crop in crops if crop.pid is not None}
    camids = {crop.camid for crop in crops if crop.camid is not None}
    return (
        f"{len(pids)} pids, {len(camids)} camids" if pids else "none (say what names mean with --pattern or --layout)"
    )
