"""The output: a table for people, a document for machines, and the files that were asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reidserve.commands.console import print_json, print_lines, progress, warn_failures, warn_lines
from reidserve.commands.eval.material import count_material
from reidserve.commands.eval.options import Written
from reidserve.errors import EvaluationError, ReidError

if TYPE_CHECKING:
    from reidserve.commands.eval.material import Scene
    from reidserve.commands.eval.stages import Stage
    from reidserve.evaluate.report import Document
    from reidserve.index.threshold import Threshold

_PACKAGES = ("reidserve", "numpy", "pillow", "onnxruntime", "torch")
_EACH = 3
_PICTURED = 6
_SHOWN_FACTS = 64


def make_document(scene: "Scene", *, seed: int, max_rank: int) -> "Document":
    """All figures of all stages."""
    from reidserve.evaluate import digest_labels
    from reidserve.evaluate.report import Document, record

    subjects = [subject for stage in scene.stages for subject in stage.subjects]
    drawn = any(subject.evaluation.trials > 1 for subject in subjects)
    return Document(
        written=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        dataset=scene.dataset,
        layout=scene.layout,
        protocol=scene.protocol,
        rule=subjects[0].evaluation.rule,
        counts=count_material(scene.query, scene.gallery),
        findings=tuple(scene.findings),
        subjects=tuple(record(subject, max_rank=max_rank) for subject in subjects),
        versions=_versions(),
        digests={"labels": digest_labels({"query": scene.query, "gallery": scene.gallery})},
        seeds={"trials": seed} if drawn else {},
    )


@dataclass(frozen=True, slots=True)
class Wrote:
    """What became of the files that were asked for.

    Attributes:
        files: which option wrote what.
        said: what is in it, in a few words, by option.
        failures: what could not be written, and why.
    """

    files: Mapping[str, Path]
    said: Mapping[str, str]
    failures: Sequence[tuple[str, str]]


def write_files(written: Written, scene: "Scene", document: "Document") -> Wrote:
    """Write what was asked for; one that fails takes neither the others nor the figures with it, which took long."""
    from reidserve.datasets import path_to_text

    files: dict[str, Path] = {}
    said: dict[str, str] = {}
    failures = []
    writers: Sequence[tuple[str, Path | None, Callable[[Path], str]]] = (
        ("per query", written.per_query, lambda path: _write_per_query(scene, path)),
        ("picture", written.picture, lambda path: _draw(scene.stages, path)),
        ("threshold", written.threshold, lambda path: _write_threshold(scene, written, path)),
        ("report", written.report, lambda path: _write_report(scene, document, path)),
    )
    for name, path, write in writers:
        if path is None:
            continue
        try:
            said[name] = write(path)
            files[name] = path
        except OSError as error:
            failures.append((path_to_text(path), error.strerror or str(error)))
        except ReidError as error:
            failures.append((path_to_text(path), str(error)))
        except ModuleNotFoundError as error:
            failures.append((path_to_text(path), f"needs the package {error.name}: install reidserve[eval]"))
    return Wrote(files, said, failures)


def _write_per_query(scene: "Scene", path: Path) -> str:
    from reidserve.evaluate.tables import write_per_query

    main = _furthest(scene.stages).subjects[0]
    write_per_query(main.evaluation, path)
    return f"of the {main.name}"


def _write_threshold(scene: "Scene", written: Written, path: Path) -> str:
    from reidserve.index.threshold import write_threshold

    threshold = calibrate(scene, written)
    write_threshold(threshold, path)
    asked, answered = {
        "search": ("searches for someone who is not in the gallery", "queries are answered rightly"),
        "pair": ("pairs of two identities", "pairs of one identity are accepted"),
    }[threshold.criterion]
    return (
        f"a score of {threshold.score:.4f} or more, which at most {100 * threshold.rate:g} % of {asked} reach, and at "
        f"which {100 * threshold.measured:.2f} % of {answered}"
    )


def _write_report(scene: "Scene", document: "Document", path: Path) -> str:
    from reidserve.datasets import path_to_text
    from reidserve.evaluate.report.page import PAGE_FILE, write_report

    with progress("writing the report"):
        subjects = [subject for stage in scene.stages for subject in stage.subjects]
        write_report(path, document, subjects, _shown(scene.stages))
    return f"open {path_to_text(path / PAGE_FILE)}"


def calibrate(scene: "Scene", written: Written) -> "Threshold":
    """The threshold of the artifact's stage that is furthest on the way to deployment.

    Raises:
        EvaluationError: not the whole gallery was ranked, too few impostors show the rate, or no score keeps to it.
    """
    from reidserve.evaluate.openset import count_searches, pair_point, search_point
    from reidserve.index.threshold import Threshold

    # A checkpoint's scores are not an artifact's, and a server's model may be another one than that which is here.
    stage = _furthest([stage for stage in scene.stages if stage.identity is not None])
    main, identity = stage.subjects[0], stage.identity
    assert identity is not None
    evaluation = main.evaluation
    if not evaluation.whole or evaluation.impostors is None:
        raise EvaluationError(f"the {main.name} gives its best hits only: calibrate on what ranks the whole gallery")
    if written.per == "search":
        point = search_point(evaluation, written.false_alarms)
        genuine = impostors = count_searches(evaluation)
    else:
        point = pair_point(evaluation, written.false_alarms)
        genuine, impostors = len(evaluation.outcomes.scores), int(evaluation.impostors.counts.sum())
    return Threshold(
        identity=identity,
        score=point.threshold,
        criterion=written.per,
        rate=written.false_alarms,
        dataset=scene.dataset,
        genuine=genuine,
        impostors=impostors,
        measured=point.true,
    )


def print_document(document: "Document", wrote: Wrote, failures: Sequence[tuple[str, str]]) -> None:
    """Print the figures side by side, what is lost between them, and what was written."""
    from reidserve.datasets import path_to_text
    from reidserve.evaluate.report import losses

    warn_failures(failures)
    warn_lines([f"error: {name} is not written: {reason}" for name, reason in wrote.failures])
    print_lines([*_table(document), ""])
    for loss in losses(document.subjects):
        print_lines([loss.said])
    for one in document.subjects:
        if not one.whole:
            print_lines([f"The {one.name}'s index may miss an entry: Rank-k is what it finds, and there is no mAP."])
    first = document.subjects[0]
    counted = f"{first.figures.queries} queries scored, {first.figures.unmatchable} without a right image"
    left_out = "" if document.rule.queries == "all" else " left out"
    sizes = " and ".join(dict.fromkeys(str(one.gallery) for one in document.subjects))
    lines = {
        "scored": f"{counted}{left_out}, in a gallery of {sizes}",
        "rule": f"{document.protocol}{_switches(document)}",
        "dataset": f"{document.dataset} (layout {document.layout})",
        **{one.name: _facts(one.facts) for one in document.subjects if "," not in one.name},
    }
    lines |= {f"wrote {name}": f"{path_to_text(path)}: {wrote.said[name]}" for name, path in wrote.files.items()}
    width = max(map(len, lines))
    print_lines([f"{name:<{width}}  {value}" for name, value in lines.items()])
    if document.findings:
        print_lines(["", *document.findings])


def print_machine(document: "Document", wrote: Wrote, failures: Sequence[tuple[str, str]]) -> None:
    """Print the document, less its queries, with what is lost, what was left out, and what was written."""
    import msgspec

    from reidserve.datasets import path_to_text
    from reidserve.evaluate.report import losses

    every: dict[str, Any] = msgspec.to_builtins(document)
    for one in every["subjects"]:
        del one["queries"]
    print_json(
        {
            **every,
            "losses": [loss.said for loss in losses(document.subjects)],
            "failures": failures,
            "wrote": {name: path_to_text(path) for name, path in wrote.files.items()},
            "unwritten": wrote.failures,
        }
    )


def _table(document: "Document") -> list[str]:
    figures = [one.figures for one in document.subjects]
    rows = [("", *(one.name for one in document.subjects))]
    rows += [(f"Rank-{k}", *(_share(one.rank(k)) for one in figures)) for k in (1, 5, 10)]
    rows += [
        (label, *(_share(getattr(one, name)) for one in figures))
        for label, name in (
            ("mAP", "mAP"),
            ("mAP, trapezoid", "mAP_trapezoid"),
            ("mAP, step", "mAP_step"),
            ("mINP", "mINP"),
        )
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for first, *cells in rows
    ]


def _share(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.4f}"


def _switches(document: "Document") -> str:
    """What of the rule is not as usual."""
    rule = document.rule
    said = [
        *([f"cameras {rule.cameras}"] if rule.cameras != "market" else []),
        *(["junk counts"] if rule.junk else []),
        *(["distractors dropped"] if not rule.distractors else []),
        *(["means over all queries"] if rule.queries == "all" else []),
        *([f"{document.subjects[0].trials} trials"] if document.subjects[0].trials > 1 else []),
    ]
    return f" ({', '.join(said)})" if said else ""


def _facts(facts: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {value[:12]}" if name in ("identity", "sha256") else f"{name} {value[:_SHOWN_FACTS]}"
        for name, value in facts.items()
    )


def _furthest(stages: Sequence["Stage"]) -> "Stage":
    """What stands nearest to deployment, of what ranked the whole gallery if anything did."""
    return max(enumerate(stages), key=lambda one: (one[1].subjects[0].evaluation.whole, one[0]))[1]


def _draw(stages: Sequence["Stage"], path: Path) -> str:
    from reidserve.evaluate.picture import draw_rankings
    from reidserve.evaluate.shown import choose_spread, show

    stage = next(stage for stage in reversed(stages) if stage.embedded is not None)
    assert stage.embedded is not None
    main = stage.subjects[0]
    draw_rankings(show(main.evaluation, *stage.embedded, choose_spread(main.evaluation, _PICTURED)), path)
    return f"of the {main.name}"


def _shown(stages: Sequence["Stage"]) -> dict[Any, Any]:
    """The best, median and worst queries, where they were embedded here and each image stands for itself."""
    from reidserve.evaluate.shown import choose_groups, show

    for stage in reversed(stages):
        if stage.embedded is None:
            continue
        query, gallery = stage.embedded
        evaluation = stage.subjects[0].evaluation
        if (len(evaluation.query), evaluation.gallery_size) == (len(query), len(gallery)) and evaluation.trials == 1:
            return {
                group: show(evaluation, query, gallery, places)
                for group, places in choose_groups(evaluation, _EACH).items()
            }
    return {}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
