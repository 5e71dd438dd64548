"""reid-index search: ask a gallery without a server."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reidserve.commands.console import Device, Index, Json, Precision, print_json, warn_engine, warn_lines
from reidserve.commands.hits import hit_facts, print_hits
from reidserve.commands.place import read_model, read_place, refuse_index
from reidserve.commands.where import Where, read_where


def search(
    query: str,
    *,
    gallery: str,
    model: str = "model",
    entry: Annotated[bool, Parameter(negative="")] = False,
    top_k: int = 10,
    where: Where = None,
    kind: Index = "auto",
    precision: Precision = "fp32",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Search a gallery without a server.

    Args:
        query: An image file, or with --entry the id of an entry, which is then left out of its own hits.
        gallery: The gallery's folder, or milvus://HOST:PORT/NAME.
        model: The artifact that embeds the query, or triton://host:8001/name.
        entry: Take the query for an entry's id.
        top_k: How many hits.
    """
    from reidserve.embed import open_embedder, read_image
    from reidserve.index import open_gallery

    condition, place = read_where(where), read_place(gallery)
    refuse_index(place, kind)
    embedder = None
    if not entry:
        embedder = open_embedder(read_model(model), precision=precision, device=device)
        warn_engine(embedder.engine, device=device, unverified=embedder.unverified)
    identity = None if embedder is None else embedder.contract.identity
    with closing(open_gallery(place, identity=identity, kind=kind)) as opened:
        snapshot = opened.snapshot
        if embedder is None:
            ranking = snapshot.search_entry(query, top_k=top_k, where=condition)
        else:
            image = embedder.embed_encoded([read_image(Path(query))])
            ranking = snapshot.search(image, top_k=top_k, where=condition)
        (hits,) = snapshot.hits(ranking)
    facts = [hit_facts(hit) for hit in hits]
    damaged = len(snapshot.damaged)
    if json:
        print_json({"generation": snapshot.generation, "damaged": damaged, "hits": facts})
    else:
        warn_lines([f"{damaged} damaged left out: reid-index verify names them"] if damaged else [])
        print_hits(facts)
