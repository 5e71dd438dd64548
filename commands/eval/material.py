"""The material: which crops, or whose features, are scored by which protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reidserve.commands.eval.options import Ruled
from reidserve.errors import EvaluationError, UsageError

if TYPE_CHECKING:
    from reidserve.commands.eval.stages import Stage
    from reidserve.datasets import Crop
    from reidserve.evaluate import Labels
    from reidserve.evaluate.protocols import Protocol


@dataclass(frozen=True, slots=True)
class Material:
    """What is scored, before anything is embedded.

    Attributes:
        layout: how the files are arranged.
        dataset: its name.
        protocol: how queries and gallery are scored.
        query: crops to search with.
        gallery: crops to search in.
        groups: for each query the images whose mean is asked with; None where each asks for itself.
    """

    layout: str
    dataset: str
    protocol: "Protocol"
    query: Sequence["Crop"]
    gallery: Sequence["Crop"]
    groups: Sequence[Sequence["Crop"]] | None = None

    @property
    def named(self) -> str:
        """The protocol for people, with what was drawn or pooled."""
        parts: list[str] = [self.protocol.name]
        if self.groups is not None:
            parts.append("multi-query")
        return ", ".join(parts)


def read_material(
    data: Path | None, query_crops: Path | None, gallery_crops: Path | None, pattern: str | None, ruled: Ruled
) -> Material:
    """Read a dataset, or two folders in its place.

    Raises:
        UsageError: neither or both were said.
        DatasetError: the data are not what was said of them.
    """
    from reidserve.datasets import Dataset, path_to_text, read_crops, read_dataset, read_multi_query, read_tracks

    folders = query_crops is not None or gallery_crops is not None or pattern is not None
    if data is not None and not folders:
        dataset, name = read_dataset(data), path_to_text(data.absolute())
    elif data is None and query_crops is not None and gallery_crops is not None:
        parts = [read_crops(folder, pattern=pattern) for folder in (query_crops, gallery_crops)]
        dataset = Dataset("crops", query=parts[0], gallery=parts[1])
        name = " and ".join(path_to_text(folder.absolute()) for folder in (query_crops, gallery_crops))
    else:
        raise UsageError("expected a dataset, or --query-crops and --gallery-crops (and --pattern) in its place")
    protocol = ruled.as_protocol(dataset.protocol)
    if protocol.name == "image-to-track":
        dataset = read_tracks(_root(data, "image-to-track"), dataset)
    groups = read_multi_query(_root(data, "--multi-query"), dataset) if ruled.multi_query else None
    if groups is not None and protocol.name == "vehicleid":
        raise UsageError("vehicleid draws its queries: --multi-query has nothing to pool")
    return Material(dataset.layout, name, protocol, dataset.query, dataset.gallery, groups)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What was scored, by which protocol, and how it went.

    Attributes:
        layout: how the files are arranged.
        dataset: its name, for a threshold that is calibrated on it.
        protocol: its name, with what was pooled.
        query: labels of the queries.
        gallery: labels of the gallery.
        findings: what labels alone say, a sentence each.
        stages: what was found of each stage.
    """

    layout: str
    dataset: str
    protocol: str
    query: "Labels"
    gallery: "Labels"
    findings: Sequence[str]
    stages: Sequence["Stage"]


def check_material(query: "Labels", gallery: "Labels", protocol: "Protocol") -> list[str]:
    """What labels alone say, a sentence each; little where the gallery is drawn from what is asked with.

    Raises:
        EvaluationError: no query can ever match.
    """
    from reidserve.evaluate import check_labels

    if protocol.name == "vehicleid":
        if (query.pids, query.sources) == (gallery.pids, gallery.sources):
            return []
        return [
            f"vehicleid draws queries too from the {len(gallery)} gallery images: the {len(query)} queries take no part"
        ]
    rule = replace(protocol.rule, cameras="cross") if protocol.name == "cuhk03-single-shot" else protocol.rule
    found = check_labels(query, gallery, rule)
    if sum(map(len, found.unmatchable.values())) == found.queries:
        raise EvaluationError(
            f"none of {found.queries} queries has a right entry in the gallery of {len(gallery)}: "
            f"{'; '.join(found.lines())}. Are query and gallery of the same identities, and are the camids right?"
        )
    return found.lines()


def compare_sources(name: str, held: "Labels", expected: "Labels") -> list[str]:
    """A sentence where what is deployed holds other images than the dataset's gallery."""
    there, wanted = set(held.sources), set(expected.sources)
    missing = sum(source not in there for source in expected.sources)
    more = sum(source not in wanted for source in held.sources)
    if not missing and not more:
        return []
    return [
        f"The {name} holds {len(held)} entries: {missing} of the dataset's {len(expected)} gallery images are not "
        f"among them, and {more} are none of these. What it holds was ranked."
    ]


def compare_models(stages: Sequence["Stage"]) -> list[str]:
    """A sentence where stages are of different artifacts."""
    identities = {stage.subjects[0].name: stage.identity for stage in stages if stage.identity is not None}
    if len(set(identities.values())) < 2:
        return []
    said = ", ".join(f"{name} {identity[:12]}" for name, identity in identities.items())
    return [f"Different models are compared, which is no loss on the way: {said}."]


def count_material(query: "Labels", gallery: "Labels") -> dict[str, int]:
    """How many of what there are."""
    return {
        "queries": len(query),
        "gallery": len(gallery),
        "query identities": len(set(query.pids)),
        "gallery identities": len(set(gallery.pids)),
        "cameras": len({*query.camids, *gallery.camids} - {None}),
    }


def _root(data: Path | None, what: str) -> Path:
    if data is None:
        raise UsageError(f"{what} needs a dataset, not --query-crops and --gallery-crops")
    return data
