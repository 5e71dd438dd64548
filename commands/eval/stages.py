"""The stages: each thing that can be scored, from a checkpoint to a running server."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reidserve.commands.console import progress, warn_engine
from reidserve.commands.eval.material import Material
from reidserve.commands.eval.options import Told, Varied
from reidserve.errors import EvaluationError, RequestError

if TYPE_CHECKING:
    from reidserve.client import Client
    from reidserve.embed import Device, ModelPlace, Precision
    from reidserve.evaluate import CropEmbedder, Embedded, Evaluation, Labelled
    from reidserve.evaluate.protocols import Protocol
    from reidserve.evaluate.report import Subject
    from reidserve.index import IndexKind, Ranking
    from reidserve.index.search.ranking import Rows

CALLERS = 8
_ASKED_AHEAD = 16
_SECONDS = 600.0
_UNREADABLE = ("IMAGE_INVALID", "IMAGE_TOO_LARGE", "EMBEDDING_INVALID")

_FEEDING = ("size", "mean", "std", "colour", "resize")


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What was found of one stage.

    Attributes:
        subjects: the stage, and what else was tried of it.
        failures: which images were left out, and why.
        embedded: query and gallery as they were scored; None where a gallery ranked itself.
        identity: of the artifact; None where there is none.
    """

    subjects: Sequence["Subject"]
    failures: Sequence[tuple[str, str]]
    embedded: "tuple[Labelled, Labelled] | None" = None
    identity: str | None = None


def score_checkpoint(path: Path, told: Told, material: Material, varied: Varied, *, device: "Device") -> Stage:
    """A checkpoint's network in torch."""
    from reidserve.commands.export import make_feeding
    from reidserve.export.checkpoints import read_checkpoint
    from reidserve.export.convert.in_torch import TorchEmbedder

    said = asdict(told)
    told_of_network = {name: value for name, value in said.items() if name not in _FEEDING}
    read = read_checkpoint(path, **told_of_network, resize=told.resize)
    feeding = make_feeding({name: said[name] for name in _FEEDING}, told=read.feeding)
    embedder = TorchEmbedder(read, feeding, device=_torch_device(device))
    facts = {
        "engine": embedder.engine,
        "network": f"{read.architecture.name} ({read.dialect})",
        "input": f"{feeding.height} x {feeding.width}, {feeding.resize}",
        "sha256": read.sha256,
    }
    return _score_embedder("checkpoint", facts, embedder, material, varied)


def _torch_device(device: "Device") -> Literal["cpu", "cuda"]:
    """Where torch runs a checkpoint beside a model on this device."""
    from reidserve.embed.onnx_session import sees_cuda

    return "cuda" if device in ("cuda", "tensorrt") or (device == "auto" and sees_cuda()) else "cpu"


def score_artifact(
    place: "ModelPlace", material: Material, varied: Varied, *, precision: "Precision", device: "Device"
) -> Stage:
    """An artifact on an engine."""
    from reidserve.embed import open_embedder

    embedder = open_embedder(place, precision=precision, device=device)
    warn_engine(embedder.engine, unverified=embedder.unverified)
    contract = embedder.contract
    facts = {
        "engine": embedder.engine,
        "network": contract.network.backbone or "adopted",
        "input": f"{contract.height} x {contract.width}, {contract.resize}",
        "identity": contract.identity,
    }
    return replace(_score_embedder("artifact", facts, embedder, material, varied), identity=contract.identity)


def score_features(query: "Labelled", gallery: "Labelled", protocol: "Protocol", varied: Varied) -> Stage:
    """Features from anyone's model."""
    facts = {"dimensions": str(query.embeddings.shape[1])}
    return Stage(_score_both("features", facts, query, gallery, None, protocol, varied), [], (query, gallery))


def score_gallery(path: Path, artifact: Stage, protocol: "Protocol", *, kind: "IndexKind", max_rank: int) -> Stage:
    """A gallery ranked by its own index, for the queries as its artifact embedded them."""
    from reidserve.evaluate.deployed import evaluate_snapshot
    from reidserve.index import open_gallery

    assert artifact.embedded is not None
    query, _ = artifact.embedded
    with closing(open_gallery(path, identity=artifact.identity, kind=kind)) as gallery:
        snapshot, origin = gallery.snapshot, gallery.origin
    with progress("ranking the gallery") as advance:
        evaluation = evaluate_snapshot(
            query, snapshot, rule=protocol.rule, max_rank=max_rank, impostors=True, progress=advance
        )
    facts = {
        "index": snapshot.kind,
        "entries": str(len(snapshot)),
        "generation": str(snapshot.generation),
        "engine": origin.engine,
        "identity": origin.identity,
    }
    return Stage([_subject("gallery", facts, evaluation)], [], identity=artifact.identity)


def score_server(target: str, name: str, material: Material, *, max_rank: int) -> Stage:
    """A running server, asked about each query image by several callers at once, all of one state of its gallery.

    Raises:
        EvaluationError: its gallery is empty, or no query image can be read.
        RequestError: it does not answer.
    """
    from reidserve.client import Client

    with Client(target, timeout=_SECONDS) as client:
        return _score_server(client, target, name, material, max_rank)


def _score_server(client: "Client", target: str, name: str, material: Material, max_rank: int) -> Stage:
    import numpy as np

    from reidserve.datasets import path_to_text
    from reidserve.embed import map_ahead
    from reidserve.evaluate import evaluate_rankings, labels_of
    from reidserve.evaluate.deployed import labels_of_entries, needed_depth

    gallery = client.gallery(name)
    entries = list(client.entries(name, generation=gallery.generation))
    if not entries:
        raise EvaluationError(f"the gallery {gallery.name!r} of {target} is empty: there is nothing to rank")
    query, held = labels_of(material.query), labels_of_entries(entries)
    rule, failures = material.protocol.rule, []
    if gallery.index.startswith("flat"):
        ask = _ask_for_all(client, name, gallery.generation, np.array([entry.row for entry in entries]))
    else:
        depth = needed_depth(rule, query, held, max_rank=max_rank)
        ask = _ask_for_best(client, name, gallery.generation, [entry.entry_id for entry in entries], depth)

    def answer(path: Path) -> "Ranking | RequestError | OSError":
        try:
            return ask(path)
        except RequestError as error:
            if error.reason not in _UNREADABLE:
                raise
            return error
        except OSError as error:
            return error

    def chunks(answers: "Iterator[Ranking | RequestError | OSError]") -> "Iterator[tuple[slice, Ranking]]":
        for place, found in enumerate(answers):
            if isinstance(found, Exception):
                failures.append((path_to_text(material.query[place].path), str(found)))
            else:
                yield slice(place, place + 1), found

    paths = [crop.path for crop in material.query]
    with (
        # A server that hangs would keep its callers, and whoever wants to stop, for as long as a call may take.
        closing(map_ahead(answer, paths, ahead=_ASKED_AHEAD, threads=CALLERS, give_up=client.close)) as answers,
        progress("asking") as advance,
    ):
        evaluation = evaluate_rankings(chunks(answers), query, held, rule=rule, impostors=True, progress=advance)
    if not len(evaluation.query):
        raise EvaluationError(
            f"none of {len(paths)} query images can be read, first {failures[0][0]}: {failures[0][1]}"
        )
    facts = {
        "server": target,
        "index": gallery.index,
        "entries": str(gallery.entries),
        "generation": str(gallery.generation),
        "engine": gallery.engine,
        "identity": gallery.model,
    }
    return Stage([_subject("server", facts, evaluation)], failures, identity=gallery.model)


def _ask_for_all(client: "Client", name: str, generation: int, rows: "Rows") -> Callable[[Path], "Ranking"]:
    """The whole ranking of one image."""
    import numpy as np

    from reidserve.evaluate.deployed import placed
    from reidserve.index import Ranking

    def ask(path: Path) -> Ranking:
        found = client.rank(path, gallery=name, generation=generation)
        scores = np.frombuffer(found.scores, np.float32)[np.newaxis]
        return placed(Ranking(scores, np.frombuffer(found.rows, np.int64)[np.newaxis]), rows)

    return ask


def _ask_for_best(
    client: "Client", name: str, generation: int, ids: Sequence[str], depth: int
) -> Callable[[Path], "Ranking"]:
    """The best hits of one image."""
    import numpy as np

    from reidserve.index import Ranking

    places = {entry_id: place for place, entry_id in enumerate(ids)}

    def ask(path: Path) -> Ranking:
        hits = client.search(path, top_k=depth, gallery=name, generation=generation).hits
        scores = np.array([[hit.score for hit in hits]], np.float32)
        return Ranking(scores, np.array([[places[hit.entry_id] for hit in hits]], np.int64))

    return ask


def _score_embedder(
    name: str, facts: Mapping[str, str], embedder: "CropEmbedder", material: Material, varied: Varied
) -> Stage:
    from reidserve.evaluate import embed_parts

    parts = {"query": material.query, "gallery": material.gallery}
    if material.groups is not None:
        parts["multi-query"] = list(itertools.chain.from_iterable(material.groups))
    with progress(f"embedding, {name}") as advance:
        embedded, failures = embed_parts(parts, embedder, flip=varied.flip, progress=advance)
    query, gallery = embedded["query"].labelled, embedded["gallery"].labelled
    if material.groups is not None:
        query = _pool_groups(material, embedded)
    tracks = [crop.track or "" for crop in embedded["gallery"].crops]
    said = {**facts, **({"flip": "mean of the image and its mirror image"} if varied.flip else {})}
    subjects = _score_both(name, said, query, gallery, tracks, material.protocol, varied)
    return Stage(subjects, failures, (query, gallery))


def _pool_groups(material: Material, embedded: Mapping[str, "Embedded"]) -> "Labelled":
    """The queries, each the mean of the readable images of its group; one of which none is readable is left out."""
    import numpy as np

    from reidserve.evaluate import Labelled, labels_of
    from reidserve.index.tracks import pool

    assert material.groups is not None
    read = {
        crop.path: row
        for crop, row in zip(embedded["multi-query"].crops, embedded["multi-query"].embeddings, strict=True)
    }
    rows, owners = [], []
    for place, group in enumerate(material.groups):
        found = [read[crop.path] for crop in group if crop.path in read]
        rows += found
        owners += [place] * len(found)
    pooled, places = pool(np.stack(rows), owners)
    return Labelled(pooled, labels_of([material.query[place] for place in places]))


def _score_both(
    name: str,
    facts: Mapping[str, str],
    query: "Labelled",
    gallery: "Labelled",
    tracks: Sequence[str] | None,
    protocol: "Protocol",
    varied: Varied,
) -> list["Subject"]:
    """The stage by its protocol, and what else is tried of it."""
    from reidserve.evaluate.protocols import evaluate_expanded, evaluate_reranked
    from reidserve.index.rerank import Reranking

    with progress(f"ranking, {name}") as advance:
        evaluation = protocol.evaluate(query, gallery, tracks=tracks, impostors=True, progress=advance)
    subjects = [_subject(name, facts, evaluation)]
    if varied.rerank:
        how = Reranking(k1=varied.k1, k2=varied.k2, weight=varied.weight)
        with progress(f"re-ranking, {name}") as advance:
            reranked = evaluate_reranked(query, gallery, how=how, rule=protocol.rule, progress=advance)
        said = f"k-reciprocal, k1 {how.k1}, k2 {how.k2}, weight {how.weight:g}"
        subjects.append(_subject(f"{name}, re-ranked", {**facts, "re-ranking": said}, reranked))
    if varied.expand:
        with progress(f"expanding, {name}") as advance:
            expanded = evaluate_expanded(
                query, gallery, count=varied.expand, alpha=varied.alpha, rule=protocol.rule, progress=advance
            )
        said = f"the mean of the query and its {varied.expand} best hits, weighed by score^{varied.alpha:g}"
        subjects.append(_subject(f"{name}, expanded", {**facts, "expansion": said}, expanded))
    return subjects


def _subject(name: str, facts: Mapping[str, str], evaluation: "Evaluation") -> "Subject":
    from reidserve.evaluate.report import Subject

    return Subject(name, facts, evaluation)
