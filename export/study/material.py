"""The material of a study's runs: read once for runs that see the same, with backgrounds swapped where asked for."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from reidserve.export.study.plan import Run
from reidserve.export.study.sources import Sources
from reidserve.export.study.study import Study, Tested
from reidserve.export.train import Material, Settings, read_material
from reidserve.export.train.material import Trial
from reidserve.export.train.pictures import Pictures
from reidserve.export.train.sampler import Labels
from reidserve.export.train.swap import swapped


@dataclass(frozen=True, slots=True)
class Scene:
    """What a run learns from and is tested on.

    Attributes:
        material: what is learnt from; half of what was held out of it, where the other half is for the test.
        test: that half, and its classes; None where the table has no such figure.
        trials: query and gallery of each test that has them.
    """

    material: Material
    test: tuple[Pictures, Labels] | None
    trials: dict[Tested, Trial]


def set_scene(run: Run, study: Study, sources: Sources, scratch: Path) -> Scene:
    """Read what a run of a study needs; pixels lie in `scratch`.

    Raises:
        DatasetError: the data cannot be learnt from, or lack the masks that swapping needs.
    """
    masks = "swapped" in study.tests or any(variant.training == "swapped" for variant in study.variants)
    key = _pixels_of(run.settings)
    own = _read(sources.data, key, scratch, masks)
    other = None if sources.other is None else _read(sources.other, key, scratch, masks)
    trials: dict[Tested, Trial] = {}
    for tested in study.tests:
        trial = other.trial if tested == "other" and other is not None else own.trial
        if trial is not None and tested == "swapped" and other is not None:
            trial = Trial(*(_swapped(part, other, key, scratch) for part in (trial.query, trial.gallery)))
        if trial is not None:
            trials[tested] = trial
    material = own
    if run.training == "swapped" and other is not None:
        material = replace(own, train=_swapped(own.train, other, key, scratch))
    if "test_accuracy" not in study.figures:
        return Scene(material, None, trials)
    return Scene(*_halved(material), trials)


def forget() -> None:
    """Let go of the pixels."""
    _read.cache_clear()


def _pixels_of(settings: Settings) -> Settings:
    """Settings with nothing left of them but what decides which pixels are read."""
    return Settings(
        input=replace(settings.input, statistics="given"),
        batch=settings.batch,
        augment=settings.augment,
        evaluation=settings.evaluation,
        seed=settings.seed,
    )


@lru_cache(maxsize=2)
def _read(data: Path, settings: Settings, scratch: Path, masks: bool) -> Material:
    return read_material(data, settings, scratch=scratch, masks=masks)


def _swapped(pictures: Pictures, other: Material, settings: Settings, scratch: Path) -> Pictures:
    return swapped(pictures, other.train, settings.seed, scratch=scratch)


def _halved(material: Material) -> tuple[Material, tuple[Pictures, Labels]]:
    """The material with every other held-out picture, and the rest of them with their classes."""
    held_out, labels = material.held_out, material.held_out_labels
    assert held_out is not None
    assert labels is not None
    first, second = (
        replace(held_out, crops=held_out.crops[start::2], pixels=held_out.pixels[start::2]) for start in (0, 1)
    )
    return replace(material, held_out=first, held_out_labels=labels[::2]), (second, labels[1::2])
