"""What a study learns from: datasets and pretrained weights, given or drawn."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.errors import CheckpointError, UsageError
from reidserve.export.checkpoints.dialects import recognise
from reidserve.export.checkpoints.files import read_contents
from reidserve.export.study.study import Scale, Study

_Progress = Callable[[int, int], None]

DRAWN = SynthSpec(train_identities=64, test_identities=60, junk=20, distractors=60)
"""The datasets of quick scale, in the domains a and b."""
PRETRAINING = SynthSpec(kind="vehicle", train_identities=160, test_identities=1, junk=0, distractors=0, seed=1)
"""What quick scale pretrains on: with other synthetic persons the control came to 93 % Rank-1 before any training."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where data and weights come from.

    Attributes:
        scale: "quick" or "full".
        data: the dataset that is trained on.
        other: another one, for what is tested across domains or put on other backgrounds; None for none.
        given: checkpoints to start from, one for each backbone.
        pretraining: a dataset to make such checkpoints of, at quick scale; None where they are given.
    """

    scale: Scale
    data: Path
    other: Path | None
    given: tuple[Path, ...]
    pretraining: Path | None

    @property
    def names(self) -> str:
        """Of the datasets, for people."""
        return " + ".join(path.absolute().name for path in (self.data, self.other) if path is not None)

    def start(self, architecture: str) -> Path:
        """The given checkpoint of a backbone.

        Raises:
            CheckpointError: none is given, or a file cannot be read.
        """
        backbones = {recognise(read_contents(path)).architecture.name: path for path in self.given}
        if architecture not in backbones:
            raise CheckpointError(
                f"a variant starts from pretrained weights of a {architecture}, --pretrained gives "
                f"{', '.join(backbones) or 'none'}: give a checkpoint of each backbone that is compared"
            )
        return backbones[architecture]


def find_sources(
    studies: Sequence[Study],
    out: Path,
    *,
    scale: Scale,
    data: Path | None,
    other: Path | None,
    pretrained: Sequence[Path],
    progress: _Progress = lambda done, total: None,
) -> Sources:
    """The data and weights of studies; at quick scale what is not given is drawn into `out`/data, once.

    Raises:
        UsageError: something is not given that is not drawn.
    """
    if scale == "full" and data is None:
        raise UsageError("--scale full trains on your data: give --data, or draw some with --scale quick")
    needing = [study.name for study in studies if study.needs_other]
    if needing and other is None and data is not None:
        raise UsageError(f"{', '.join(needing)} compares two datasets: give the second one with --other")
    if scale == "full" and not pretrained:
        raise UsageError(
            "--scale full starts from weights trained elsewhere, as the published figures do: give a checkpoint of "
            "the study's backbone with --pretrained (--scale quick pretrains on synthetic vehicles)"
        )
    return Sources(
        scale,
        data or _drawn(out, "synthetic-a", DRAWN, progress),
        other or (_drawn(out, "synthetic-b", replace(DRAWN, domain="b"), progress) if needing else None),
        tuple(pretrained),
        None if pretrained else _drawn(out, "synthetic-pretraining", PRETRAINING, progress),
    )


def _drawn(out: Path, name: str, spec: SynthSpec, progress: _Progress) -> Path:
    folder = out / "data" / name
    if not folder.exists():
        write_dataset(folder, spec, processes=os.cpu_count() or 1, progress=progress)
    return folder
