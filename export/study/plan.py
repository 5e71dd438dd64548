"""The plan of a study: each run with its settings, in the order in which they are made."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import msgspec

from reidserve.errors import UsageError
from reidserve.export.adapt import AdaptSettings
from reidserve.export.study.sources import PRETRAINING, Sources
from reidserve.export.study.study import ADAPT, CONTROL, GIVEN, UNTRAINED, Study, Training, Variant, find
from reidserve.export.train import Settings
from reidserve.export.train.recipes import change

_DIGITS = 12

_PRETRAINING = (
    *("network.neck=no", "input.height=64", "input.width=32", "batch.identities=8", "loss.metric=none"),
    *("loss.smoothing=0", "optim.lr=0.001", "evaluation.every=0", "stages.1.epochs=8", "seed=1"),
)
"""As ImageNet's weights come about: a plain classifier, of which only the backbone is taken."""


@dataclass(frozen=True, slots=True)
class Run:
    """A variant once.

    Attributes:
        path: its folder.
        variant: its name.
        repeat: from 1.
        settings: whose `init.pretrained` is a file that may have yet to be made.
        training: what it is trained on; None for the network as it is drawn.
        adaptation: how it is adapted to the other data; None where it is not.
        start: the weights it begins with, for people.
    """

    path: Path
    variant: str
    repeat: int
    settings: Settings
    training: Training | None
    adaptation: AdaptSettings | None
    start: str

    @property
    def digest(self) -> str:
        """The sha256 of what it computes, data aside: settings, and the content of the weights it begins with."""
        values = {**self.settings.values(), "training": self.training}
        if self.adaptation is not None:
            values["adaptation"] = asdict(self.adaptation)
        if self.settings.init.pretrained:
            weights = Path(self.settings.init.pretrained).read_bytes()
            values["init.pretrained"] = hashlib.sha256(weights).hexdigest()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def plan_runs(
    study: Study, sources: Sources, out: Path, *, repeat: int, variants: Sequence[str] = (), changes: Sequence[str] = ()
) -> list[Run]:
    """The runs of a repeat, counted from 1: the control's network untrained, the control, then what differs from it.

    Raises:
        UsageError: there is no such variant, or a change is none.
        CheckpointError: a variant's backbone has no pretrained weights.
    """
    runs = [_run(study, variant, sources, out, repeat, changes) for variant in study.chosen(variants)]
    control = runs[0].settings
    drawn = replace(control, init=replace(control.init, pretrained="", class_centres=False))
    path = out / "runs" / _file_name(UNTRAINED, repeat)
    return [Run(path, UNTRAINED, repeat, drawn, None, None, "drawn"), *runs]


def plan_pretraining(runs: Sequence[Run], sources: Sources, out: Path) -> list[Run]:
    """The runs that make the pretrained weights which these runs begin with."""
    if sources.pretraining is None:
        return []
    architectures = dict.fromkeys(run.settings.network.arch for run in runs)
    needed = {run.settings.init.pretrained for run in runs}
    return [
        Run(path.parent, architecture, 1, settings, "ordinary", None, "drawn")
        for architecture in architectures
        if str(path := _pretrained(out, architecture)) in needed
        for settings in [change(Settings(), [*_PRETRAINING, f"network.arch={architecture}"])]
    ]


def _run(study: Study, variant: Variant, sources: Sources, out: Path, repeat: int, changes: Sequence[str]) -> Run:
    settings, adaptation = _settings(study, variant, sources, repeat, changes)
    start = "drawn"
    if settings.init.pretrained == GIVEN:
        path, start = _given(settings.network.arch, sources, out)
        settings = _starting(settings, path)
    elif settings.init.pretrained == CONTROL:
        path = out / "runs" / _file_name(study.control.name, repeat) / "model.safetensors"
        settings, start = _starting(settings, path), "the control's"
    if adaptation is not None:
        settings = adaptation.training(settings, start=settings.init.pretrained)
    path = out / "runs" / _file_name(variant.name, repeat)
    return Run(path, variant.name, repeat, settings, variant.training, adaptation, start)


def _settings(
    study: Study, variant: Variant, sources: Sources, repeat: int, changes: Sequence[str]
) -> tuple[Settings, AdaptSettings | None]:
    quick = sources.scale == "quick"
    settings, adaptation = Settings(), AdaptSettings()
    own = {text.partition("=")[0] for text in variant.changes}
    others = [text for text in changes if text.partition("=")[0].strip() not in own]
    for some in (study.base, study.quick if quick else (), variant.changes, variant.quick if quick else (), others):
        settings = change(settings, [text for text in some if not text.startswith(ADAPT)])
        adaptation = _change_adaptation(adaptation, [text for text in some if text.startswith(ADAPT)])
    seeded = replace(settings, seed=settings.seed + study.seed + repeat - 1)
    return seeded, adaptation if variant.adapts else None


def _change_adaptation(adaptation: AdaptSettings, changes: Sequence[str]) -> AdaptSettings:
    values: dict[str, object] = asdict(adaptation)
    for text in changes:
        name, _, value = text.removeprefix(ADAPT).partition("=")
        values[find(name, [field.name for field in fields(AdaptSettings)], "setting of an adaptation")] = value
    try:
        return msgspec.convert(values, AdaptSettings, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{', '.join(changes)}: {error}") from error


def _given(architecture: str, sources: Sources, out: Path) -> tuple[Path, str]:
    if sources.pretraining is None:
        path = sources.start(architecture)
        return path, path.name
    return _pretrained(out, architecture), f"pretrained on {PRETRAINING.train_identities} synthetic vehicles"


def _pretrained(out: Path, architecture: str) -> Path:
    return out.parent / "pretrained" / architecture / "model.safetensors"


def _starting(settings: Settings, path: Path) -> Settings:
    return replace(settings, init=replace(settings.init, pretrained=str(path)))


def _file_name(variant: str, repeat: int) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', variant.lower()).strip('-')}.{repeat}"
