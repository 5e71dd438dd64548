"""Adapting a network to images without labels."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from reidserve.commands.console import (
    DONE,
    FAILED,
    Force,
    Json,
    Pattern,
    print_facts,
    print_json,
    progress,
    warn_failures,
)
from reidserve.commands.train.options import Chosen
from reidserve.commands.train.training import say, train_shown
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.export.adapt import Target
    from reidserve.export.train import Material, Outcome, Record

_Unsaid = Parameter(show_default=False)

_COLUMNS = (
    ("loss", "loss", ".3f"),
    ("source", "source_loss", ".3f"),
    ("target", "target_loss", ".3f"),
    ("clusters", "clusters", "d"),
    ("noise", "noise", ".0%"),
    ("F (by labels)", "pair_f", ".3f"),
    ("images/s", "images_per_second", ".0f"),
    ("Rank-1", "rank1", ".4f"),
    ("Rank-5", "rank5", ".4f"),
    ("Rank-10", "rank10", ".4f"),
    ("mAP", "mAP", ".4f"),
)
"""What a line says of an epoch, where it is known: a word, the record's name for it, and a format."""


def adapt(
    *,
    source: Path,
    target: Path,
    out: Path = Path("run"),
    start: Annotated[str | None, _Unsaid] = None,
    mode: Literal["joint", "target", "mixed"] = "joint",
    distance: Literal["rerank", "cosine"] = "rerank",
    eps: float = 0.6,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
    adapt_epochs: int = 20,
    adapt_lr: float = 0.1,
    pattern: Pattern = None,
    chosen: Chosen = Chosen(),  # noqa: B008
    force: Force = False,
    json: Json = False,
) -> int:
    """Adapt a network to a target's images, which need no labels: cluster them, learn the clusters, and again.

    OUT/source is a run on the source, with the settings below; --start takes a checkpoint in its place. OUT/adapted
    begins with it and learns source and target together; its model.safetensors is the last epoch's network, for
    reid-export --checkpoint. Each goes on where it was cut off, and comes to the same weights. The target's labels,
    where its layout tells them, are used for the figures that are printed (F: how far clusters are identities; Rank-1
    and mAP) and for nothing else.

    Args:
        source: A labelled dataset; its training part is learnt from.
        target: A dataset whose training part, or a folder whose images, the network is adapted to.
        out: The folder of both runs.
        start: A checkpoint trained on the source, of the network of the settings; OUT/source is not made then.
        mode: joint learns both, each with a classifier of its own; target learns its clusters alone; mixed has one
            classifier for the classes of both, which is known to be worse.
        distance: Between the target's images: rerank (k-reciprocal) or cosine.
        eps: Images this near are neighbours; of cosine distances about 0.2.
        min_samples: Neighbours, itself counted, that an image in the middle of a cluster has.
        k1: Of re-ranking; about as many as an identity has images.
        k2: Of re-ranking.
        adapt_epochs: Times that the target is clustered and learnt from.
        adapt_lr: The learning rate meanwhile, as a share of the one that the source is learnt with.
        force: Start over, whatever the folders hold.
    """
    from reidserve.export.adapt import AdaptSettings, check_adaptation, read_target
    from reidserve.export.adapt import adapt as run_epochs
    from reidserve.export.train import check_start, claim_folder, read_material
    from reidserve.export.train.recipes import change
    from reidserve.export.train.report import draw_curves
    from reidserve.export.train.report.run_page import CURVES_FILE

    if start and chosen.pretrained:
        raise UsageError("--pretrained is what the run on the source begins with, --start takes its place: give one")
    # The source is learnt from, the target is scored.
    source_settings = change(chosen.settings(), ["evaluation.every=0"])
    how = AdaptSettings(
        mode=mode,
        distance=distance,
        eps=eps,
        min_samples=min_samples,
        k1=k1,
        k2=k2,
        epochs=adapt_epochs,
        lr=adapt_lr,
    )
    first = out / "source"
    settings = how.training(chosen.settings(), start=start or str(first / "model.safetensors"))
    with claim_folder(out / "adapted", settings, force=force) as folder:
        check_adaptation(settings, folder)
        with progress("fetching") as advance:
            check_start(settings if start else source_settings, folder, progress=advance)
        with progress("reading the source") as advance:
            material = read_material(source, source_settings, scratch=folder.path, pattern=pattern, progress=advance)
        with progress("reading the target") as advance:
            found = read_target(target, settings, scratch=folder.path, pattern=pattern, progress=advance)
        for note in [*material.notes, *found.notes]:
            say(f"note: {note}")
        if start is None:
            # One that is finished is left as it is.
            with claim_folder(first, source_settings, force=force) as source_folder:
                train_shown(material, source_folder, source_settings, tell=lambda line: say(f"source: {line}"))
        with progress("adapting") as advance:
            outcome = run_epochs(
                *(material, found, folder, settings, how),
                say=say,
                on_epoch=lambda record: say(_line(record, adapt_epochs)),
                progress=advance,
            )
        with progress("drawing"):
            draw_curves({"": folder.records()}, folder.path / CURVES_FILE)
    _report(outcome, material, found, json=json)
    return FAILED if material.failures or found.failures else DONE


def _report(outcome: "Outcome", material: "Material", target: "Target", *, json: bool) -> None:
    failures = [*material.failures, *target.failures]
    if json:
        facts = {"model": str(outcome.model), "last": asdict(outcome.best), "classes": outcome.classes}
        counts = {"source_images": len(material.train), "target_images": len(target.pictures)}
        print_json({**facts, **counts, "resumed_after": outcome.resumed_after, "failures": failures})
        return
    warn_failures(failures)
    print_facts(
        {
            "wrote": outcome.model,
            "source": f"{len(material.train)} images of {outcome.classes} identities",
            "target": f"{len(target.pictures)} images, learnt from without their labels",
            "last epoch": _line(outcome.best, outcome.best.epoch),
        }
    )


def _line(record: "Record", epochs: int) -> str:
    """An epoch's record as a line."""
    parts = [f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}" + ("" if record.epoch else "  before adapting")]
    for name, key, form in _COLUMNS:
        value = getattr(record, key)
        if value is not None:
            parts.append(f"{name} {value:{form}}")
    return "  ".join(parts)
