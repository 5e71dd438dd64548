"""Vehicles: what tells one from another."""

from dataclasses import dataclass
from typing import Literal, get_args

from numpy.random import Generator

from reidserve.datasets.synth.canvas import Colour
from reidserve.datasets.synth.draws import between, chance, pick
from reidserve.datasets.synth.patterns import PATTERNS, Pattern
from reidserve.datasets.synth.worlds import World

Model = Literal["sedan", "hatch", "wagon", "suv", "van", "pickup", "truck", "bus"]
Wheel = Literal["disc", "ring", "spokes", "steel"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The proportions of a model, metres.

    Attributes:
        length: bumper to bumper.
        width: side to side.
        height: road to roof.
        belt: road to the lower edge of the windows.
        nose: front bumper to the foot of the windscreen.
        tail: rear bumper to the foot of the rear window.
        rake: how far the windscreen leans.
        slope: how far the rear window leans.
        wheel: radius of a wheel.
    """

    length: float
    width: float
    height: float
    belt: float
    nose: float
    tail: float
    rake: float
    slope: float
    wheel: float


SHAPES: dict[Model, Shape] = {
    "sedan": Shape(4.6, 1.8, 1.42, 0.92, 1.25, 0.85, 0.65, 0.6, 0.33),
    "hatch": Shape(3.8, 1.7, 1.48, 0.92, 0.95, 0.06, 0.6, 0.4, 0.31),
    "wagon": Shape(4.7, 1.8, 1.46, 0.92, 1.2, 0.06, 0.6, 0.3, 0.33),
    "suv": Shape(4.5, 1.9, 1.8, 1.12, 1.1, 0.06, 0.5, 0.2, 0.4),
    "van": Shape(4.9, 1.9, 2.1, 1.15, 0.6, 0.02, 0.55, 0.06, 0.35),
    "pickup": Shape(5.1, 1.9, 1.75, 1.08, 1.25, 1.7, 0.5, 0.15, 0.4),
    "truck": Shape(6.2, 2.1, 2.2, 1.25, 0.15, 4.2, 0.25, 0.05, 0.45),
    "bus": Shape(8.2, 2.3, 2.8, 1.3, 0.08, 0.05, 0.2, 0.06, 0.45),
}


@dataclass(frozen=True, slots=True)
class Vehicle:
    """A vehicle.

    Attributes:
        model: what it is.
        stretch: its length as a share of the model's.
        rise: its height as a share of the model's.
        base: colour of the body.
        accent: colour of what is painted on it.
        pattern: what is painted on its sides.
        period: distance of repeats of the pattern, metres.
        upper: colour of roof and pillars.
        bonnet: what is painted along bonnet and roof.
        cargo: colour of the box of a truck.
        bumpers: colour of the bumpers.
        wheel: how the rims look.
        rim: colour of the rims.
        tint: colour of the glass.
        rack: whether there are rails on the roof.
        load: colour of the box on the roof, if any.
        bar: colour of the light bar on the roof, if any.
        spoiler: whether there is a spoiler.
        sticker: colour of the sticker on the rear, if any.
        lamps: colour of the head lamps.
    """

    model: Model
    stretch: float
    rise: float
    base: Colour
    accent: Colour
    pattern: Pattern
    period: float
    upper: Colour
    bonnet: Literal["none", "one", "two"]
    cargo: Colour
    bumpers: Colour
    wheel: Wheel
    rim: Colour
    tint: Colour
    rack: bool
    load: Colour | None
    bar: Colour | None
    spoiler: bool
    sticker: Colour | None
    lamps: Colour


def draw_vehicle(rng: Generator, world: World, fleet: Generator) -> Vehicle:
    """Draw a vehicle of a world; all that are drawn with the same `fleet` are painted in the same colours."""
    base, accent, third = (world.paint[i] for i in fleet.permutation(len(world.paint))[:3])
    if chance(rng, 0.4):
        base, accent = accent, base
    return Vehicle(
        model=pick(rng, get_args(Model)),
        stretch=between(rng, 0.93, 1.07),
        rise=between(rng, 0.95, 1.06),
        base=base,
        accent=accent,
        pattern=pick(rng, (*PATTERNS, "plain", "plain")),
        period=pick(rng, (0.32, 0.5)),
        upper=pick(rng, (base, base, accent, third)),
        bonnet=pick(rng, ("none", "none", "one", "two")),
        cargo=pick(rng, (base, accent, third)),
        bumpers=pick(rng, (base, (40, 40, 44), (150, 152, 156))),
        wheel=pick(rng, get_args(Wheel)),
        rim=pick(rng, ((196, 198, 202), (70, 70, 76), accent)),
        tint=pick(rng, ((36, 44, 54), (96, 128, 146), (20, 22, 26))),
        rack=chance(rng, 0.3),
        load=pick(rng, (accent, third)) if chance(rng, 0.25) else None,
        bar=pick(rng, (accent, third)) if chance(rng, 0.2) else None,
        spoiler=chance(rng, 0.25),
        sticker=pick(rng, (accent, third)) if chance(rng, 0.5) else None,
        lamps=pick(rng, ((250, 246, 220), (200, 220, 246))),
    )
