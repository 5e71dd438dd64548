"""The page of a report: one HTML file that needs nothing else, beside its report.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reidserve.errors import ReidError
from reidserve.evaluate.breakdown import CameraPair, camera_order
from reidserve.evaluate.picture import fit_crop
from reidserve.evaluate.report.document import DOCUMENT_FILE, Document, Record, Subject, encode_document
from reidserve.evaluate.report.figures import draw_cmc, draw_roc, draw_scores
from reidserve.evaluate.report.losses import STAGES, losses, summarise_losses
from reidserve.evaluate.report.template import data_uri, fill
from reidserve.evaluate.rule import Rule
from reidserve.evaluate.shown import Group, Shown
from reidserve.index.storage.folders import new_folder

PAGE_FILE = "index.html"

_THUMBNAIL = (144, 192)
_MOST_CONFUSIONS = 15


def write_report(
    folder: Path, document: Document, subjects: Sequence[Subject], shown: Mapping[Group, Sequence[Shown]]
) -> None:
    """Write a new folder with index.html and report.json; `subjects` are those that `document` records.

    An image that cannot be read any more is named on the page in its place.

    Raises:
        OutputExistsError: there is something at `folder`.
        OSError: it cannot be written.
    """
    page = render(document, subjects, shown)
    with new_folder(folder) as partial:
        (partial / DOCUMENT_FILE).write_bytes(encode_document(document))
        (partial / PAGE_FILE).write_text(page, encoding="utf-8")


def render(document: Document, subjects: Sequence[Subject], shown: Mapping[Group, Sequence[Shown]]) -> str:
    """The page as HTML; all that is not ours is escaped."""
    main = _furthest(document.subjects)
    changes = losses(document.subjects)
    gathered = [one for one in subjects if one.evaluation.whole and one.evaluation.impostors is not None]
    return fill(
        "reidserve.evaluate.report",
        "page.html.jinja",
        thumbnail=_thumbnail,
        document=document,
        main=main,
        losses=changes,
        lost=summarise_losses(changes),
        facts=list(dict.fromkeys(name for one in document.subjects for name in one.facts)),
        rule=rule_in_words(document.rule),
        cmc=draw_cmc(document.subjects),
        scores=_draw_scores(subjects, main),
        roc=draw_roc(gathered) if gathered else None,
        cameras=_matrix(main.cameras),
        confusions=main.confusions[:_MOST_CONFUSIONS],
        shown={group: queries for group, queries in shown.items() if queries},
    )


def rule_in_words(rule: Rule) -> list[str]:
    """What a rule says, a sentence each."""
    cameras = {
        "market": "Gallery entries of the query's own identity and camera are dropped: they are too easy.",
        "cross": "All gallery entries of the query's own camera are dropped.",
        "any": "Entries of the query's own camera count like all others.",
    }
    return [
        cameras[rule.cameras],
        f"Junk (pid -1) {'counts as wrong' if rule.junk else 'is dropped'}.",
        f"Distractors (pid 0000) {'count as wrong' if rule.distractors else 'are dropped'}.",
        "Means are over all queries; one without a right entry counts as nothing found."
        if rule.queries == "all"
        else "Means are over the queries that have a right entry.",
    ]


def _furthest(subjects: Sequence[Record]) -> Record:
    """The subject nearest to what is deployed, which the page is mostly about: a whole ranking before a cut one."""
    order = {name: place for place, name in enumerate(("features", *STAGES), start=1)}
    return max(subjects, key=lambda one: (one.whole, order.get(one.name, 0)))


def _draw_scores(subjects: Sequence[Subject], main: Record) -> str | None:
    if main.open_set is None:
        return None
    (subject,) = (one for one in subjects if one.name == main.name)
    return draw_scores(subject, main.open_set)


def _matrix(pairs: Sequence[CameraPair]) -> tuple[list[str | None], list[tuple[str | None, list[CameraPair | None]]]]:
    """Gallery cameras, and for each query camera its pairs with them."""
    columns = sorted({pair.gallery_camid for pair in pairs}, key=camera_order)
    rows = sorted({pair.query_camid for pair in pairs}, key=camera_order)
    cells = {(pair.query_camid, pair.gallery_camid): pair for pair in pairs}
    return columns, [(row, [cells.get((row, column)) for column in columns]) for row in rows]


def _thumbnail(source: str) -> str | None:
    """A small JPEG as a data URI; None where the image cannot be read any more."""
    try:
        crop = fit_crop(source, _THUMBNAIL)
    except (ReidError, OSError):
        return None
    return data_uri(crop)
