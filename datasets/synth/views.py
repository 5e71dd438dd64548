"""Views: from where a camera looks at a target, and where points of the target appear."""

import math
from dataclasses import dataclass, field

from reidserve.datasets.synth.canvas import Point

Point3 = tuple[float, float, float]  # forward, to its own left, up


@dataclass(frozen=True, slots=True)
class View:
    """A direction to look from, and the nearly parallel projection of it.

    Attributes:
        yaw: how the target is turned, degrees: 0 faces the camera, 90 goes to the right, 180 shows its back.
        elevation: height of the camera over the target, degrees.
        perspective: how much a point grows for each unit it is nearer.
    """

    yaw: float
    elevation: float = 0.0
    perspective: float = 0.0
    facing: float = field(init=False)
    turned: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facing", math.cos(math.radians(self.yaw)))
        object.__setattr__(self, "turned", math.sin(math.radians(self.yaw)))

    def depth(self, forward: float, left: float = 0.0) -> float:
        """Say how near a point is: larger is nearer."""
        return forward * self.facing - left * self.turned

    def point(self, forward: float, left: float, up: float) -> Point:
        """Say where a point appears."""
        across, depth = left * self.facing + forward * self.turned, self.depth(forward, left)
        lift = math.radians(self.elevation)
        near = 1 + self.perspective * depth
        return across * near, (up * math.cos(lift) - depth * math.sin(lift)) * near

    def across(self, width: float, depth: float) -> float:
        """Say how wide an upright oval of two half axes appears, left to right and front to back."""
        return math.hypot(width * self.facing, depth * self.turned)
