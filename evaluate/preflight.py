"""Before scoring: which queries can never match, and why; what the labels leave open."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reidserve.datasets import JUNK
from reidserve.evaluate.labelled import Labels
from reidserve.evaluate.rule import Judge, Rule

Reason = Literal["no pid", "junk", "absent", "own camera", "own image"]

MEANINGS: Mapping[Reason, str] = {
    "no pid": "have no pid: say what names mean",
    "junk": "are junk (pid -1), which matches nothing",
    "absent": "have a pid that the gallery does not hold",
    "own camera": "have a pid that the gallery holds on their own camera only, which the rule drops",
    "own image": "have a pid of which the gallery holds their own image only",
}


@dataclass(frozen=True, slots=True)
class Preflight:
    """What labels alone say of an evaluation.

    Attributes:
        queries: how many queries there are.
        unmatchable: places of queries that no ranking can answer, by reason.
        notes: what else a reader should know, a sentence each.
    """

    queries: int
    unmatchable: Mapping[Reason, Sequence[int]]
    notes: Sequence[str]

    def lines(self) -> list[str]:
        """All of it in words, a line each."""
        counted = [
            f"{len(places)} of {self.queries} queries {MEANINGS[reason]}" for reason, places in self.unmatchable.items()
        ]
        return [*counted, *self.notes]


def check_labels(query: Labels, gallery: Labels, rule: Rule) -> Preflight:
    """Look at labels before anything is embedded or ranked."""
    judge = Judge(rule, query, gallery)
    answered = np.unique(judge.right(slice(0, len(query))).owners)
    unanswered = np.setdiff1d(np.arange(len(query)), answered).tolist()
    rows: dict[str | None, list[int]] = defaultdict(list)
    for row, pid in enumerate(gallery.pids):
        rows[pid].append(row)
    unmatchable: dict[Reason, list[int]] = defaultdict(list)
    for place in unanswered:
        unmatchable[_reason(place, query, gallery, rows.get(query.pids[place], []))].append(place)
    return Preflight(len(query), dict(unmatchable), _notes(query, gallery, rule))


def _reason(place: int, query: Labels, gallery: Labels, rows: Sequence[int]) -> Reason:
    """Why no entry is right for a query, of those with its pid at `rows`."""
    pid, source = query.pids[place], query.sources[place]
    if pid is None:
        return "no pid"
    if pid == JUNK:
        return "junk"
    if not rows:
        return "absent"
    if all(source is not None and gallery.sources[row] == source for row in rows):
        return "own image"
    return "own camera"


def _notes(query: Labels, gallery: Labels, rule: Rule) -> list[str]:
    notes = []
    if rule.cameras != "any":
        for name, labels in (("queries", query), ("gallery entries", gallery)):
            if unknown := sum(camid is None for camid in labels.camids):
                notes.append(
                    f"{unknown} of {len(labels)} {name} have no camera, which counts as no query's own: "
                    "easy answers from the same camera may be counted"
                )
    if unlabelled := sum(pid is None for pid in gallery.pids):
        notes.append(f"{unlabelled} of {len(gallery)} gallery entries have no pid and count as wrong for every query")
    return notes
