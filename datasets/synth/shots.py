"""Shots: which pictures a spec asks for, and what each is called."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reidserve.datasets.synth.draws import generator
from reidserve.datasets.synth.spec import SynthSpec

Folder = Literal["bounding_box_train", "query", "bounding_box_test"]
Role = Literal["identity", "distractor", "junk"]

FOLDERS: tuple[Folder, ...] = ("bounding_box_train", "query", "bounding_box_test")
GAP = 25
"""Frames between two pictures of one target."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to take.

    Attributes:
        folder: where it goes.
        role: an identity, a stranger who is nobody's match, or a box with hardly anything in it.
        target: number of the identity, the stranger or the box, from 1.
        camera: number of the camera, from 1.
        index: number of the picture of this target by this camera, from 0.
    """

    folder: Folder
    role: Role
    target: int
    camera: int
    index: int

    def name(self, spec: SynthSpec) -> str:
        """Give the file's name without its ending, in the manner of Market-1501."""
        rng = generator(spec.seed, spec.domain, spec.kind, "name", self.role, self.target, self.camera)
        start = int(rng.integers(0, 900_000)) if self.role == "identity" else GAP * self.target
        sequence, box = int(rng.integers(1, 7)), int(rng.integers(1, 10))
        pid = {"identity": f"{self.target:04d}", "distractor": "0000", "junk": "-1"}[self.role]
        return f"{pid}_c{self.camera}s{sequence}_{start + GAP * self.index:06d}_{box:02d}"


def plan_shots(spec: SynthSpec) -> Iterator[Shot]:
    """Give every shot of a spec, one target after another; train has odd pids and test even ones, so each can grow."""
    for identity in range(spec.train_identities):
        for camera, index in _sightings(spec):
            yield Shot("bounding_box_train", "identity", 2 * identity + 1, camera, index)
    for identity in range(spec.test_identities):
        for camera, index in _sightings(spec):
            yield Shot("bounding_box_test" if index else "query", "identity", 2 * identity + 2, camera, index)
    for target in range(1, spec.distractors + 1):
        yield Shot("bounding_box_test", "distractor", target, target % spec.cameras + 1, 0)
    for target in range(1, spec.junk + 1):
        yield Shot("bounding_box_test", "junk", target, target % spec.cameras + 1, 0)


def _sightings(spec: SynthSpec) -> Iterator[tuple[int, int]]:
    return ((camera, index) for camera in range(1, spec.cameras + 1) for index in range(spec.images_per_camera))
