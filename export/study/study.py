"""A study as data: variants that differ from a control in one thing, and the lines of its table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from reidserve.errors import UsageError

Scale = Literal["quick", "full"]
Training = Literal["ordinary", "swapped"]
"""What a variant is trained on: the data as they are, or on the other data's backgrounds."""
Tested = Literal["ordinary", "swapped", "other"]
"""What it is tested on: query and gallery of the data, these on the other data's backgrounds, or the other data's."""

UNTRAINED = "untrained"
"""The variant that every study has: the control's network with drawn weights."""
GIVEN, CONTROL = "given", "control"
"""As `init.pretrained`: the pretrained weights of the variant's backbone, and what the control of the repeat became."""
ADAPT = "adapt."
"""What the names of `AdaptSettings` begin with, beside those of `Settings`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One thing that is tried.

    Attributes:
        name: for people.
        changes: what of the control's settings is changed, as on the command line: ("head.temperature=0.05",); a
            variant that changes `adapt.` settings is adapted to the other data.
        quick: changed besides at quick scale, where the network is another one.
        training: what it is trained on.
    """

    name: str
    changes: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    training: Training = "ordinary"

    @property
    def adapts(self) -> bool:
        """Whether it is adapted to the other data."""
        return any(change.startswith(ADAPT) for change in self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a study's table.

    Attributes:
        name: for people, and of the published figures.
        variant: whose figures these are.
        tested: on what.
        at: after which share of the epochs.
        against: the line that its trend is measured from; "" for the first.
    """

    name: str
    variant: str
    tested: Tested = "ordinary"
    at: float = 1.0
    against: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A control and its variants.

    Attributes:
        name: as on the command line.
        title: what is asked.
        base: the settings of the control at full scale, as changes of the defaults.
        quick: what is changed of them at quick scale.
        variants: the control first.
        lines: of the table; the first is what trends are measured from.
        figures: the columns of the table, as fields of `Row`.
        metric: the column that trends are read off.
        by_epoch: whether the table has every epoch of every variant too.
        seed: of the first repeat; the next have the next ones.
    """

    name: str
    title: str
    base: tuple[str, ...]
    quick: tuple[str, ...]
    variants: tuple[Variant, ...]
    lines: tuple[Line, ...]
    figures: tuple[str, ...] = ("mAP", "rank1", "rank5", "rank10")
    metric: str = "mAP"
    by_epoch: bool = False
    seed: int = 0

    @property
    def control(self) -> Variant:
        """What every other variant differs from in one thing."""
        return self.variants[0]

    @property
    def tests(self) -> list[Tested]:
        """All that its lines are tested on."""
        return list(dict.fromkeys(line.tested for line in self.lines))

    @property
    def logged(self) -> Tested:
        """What its variants are scored on while they learn."""
        return "other" if any(variant.adapts for variant in self.variants) else "ordinary"

    @property
    def needs_other(self) -> bool:
        """Whether it takes a second dataset."""
        return self.tests != ["ordinary"] or any(variant.training != "ordinary" for variant in self.variants)

    def chosen(self, names: Sequence[str]) -> tuple[Variant, ...]:
        """The variants of these names, the control always first; all of them for no names.

        Raises:
            UsageError: there is no such variant; the nearest name is said.
        """
        known = {variant.name: variant for variant in self.variants}
        wanted = {find(name, known, f"variant of {self.name}") for name in names} | {self.control.name}
        return tuple(variant for variant in self.variants if not names or variant.name in wanted)


def find(name: str, known: Iterable[str], kind: str) -> str:
    """The name itself, where it is known.

    Raises:
        UsageError: it is not; the nearest name is said, and all there are.
    """
    names = list(known)
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    meant = f": did you mean {near[0]!r}?" if near else "."
    # A variant's name may have a comma in it.
    raise UsageError(f"no {kind} is called {name!r}{meant} There are {', '.join(map(repr, names))}")
