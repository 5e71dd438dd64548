"""Persons: what tells one from another."""

from dataclasses import dataclass
from typing import Literal, get_args

from numpy.random import Generator

from reidserve.datasets.synth.canvas import Colour
from reidserve.datasets.synth.draws import between, chance, pick
from reidserve.datasets.synth.patterns import PATTERNS, Pattern
from reidserve.datasets.synth.worlds import World

Top = Literal["tee", "shirt", "jacket", "coat", "sleeveless"]
Bottom = Literal["trousers", "flared", "shorts", "skirt"]
Hair = Literal["bald", "short", "long", "bun"]
Headwear = Literal["none", "cap", "hat", "beanie"]
Bag = Literal["none", "backpack", "satchel", "handbag"]


@dataclass(frozen=True, slots=True)
class Person:
    """A person, in units of their own height.

    Attributes:
        build: girth, 1 for the mean.
        leg: height of the hip.
        head: radius of the head.
        stride: how far the legs swing, radians.
        skin: colour of face and hands.
        hair: cut of the hair.
        hair_colour: its colour.
        headwear: what is worn over it.
        headwear_colour: its colour.
        top: cut of the upper garment.
        pattern: what is printed on it.
        base: its colour.
        accent: the colour of what is printed.
        period: distance of repeats of the pattern.
        sleeves: colour of the sleeves.
        logo: side with a square print of the accent colour, if any.
        bottom: cut of the lower garment.
        bottom_colour: its colour.
        seam: colour of the stripe along the leg, if any.
        shoes: colour of the shoes.
        boots: whether they reach up the leg.
        bag: what is carried.
        bag_colour: its colour.
        scarf: colour of the scarf, if any.
        glasses: whether glasses are worn.
        umbrella: colour of the closed umbrella in the right hand, if any.
    """

    build: float
    leg: float
    head: float
    stride: float
    skin: Colour
    hair: Hair
    hair_colour: Colour
    headwear: Headwear
    headwear_colour: Colour
    top: Top
    pattern: Pattern
    base: Colour
    accent: Colour
    period: float
    sleeves: Colour
    logo: Literal["none", "chest", "back"]
    bottom: Bottom
    bottom_colour: Colour
    seam: Colour | None
    shoes: Colour
    boots: bool
    bag: Bag
    bag_colour: Colour
    scarf: Colour | None
    glasses: bool
    umbrella: Colour | None


def draw_person(rng: Generator, world: World, team: Generator) -> Person:
    """Draw a person of a world; all who are drawn with the same `team` dress in the same colours."""
    base, accent, third = (world.cloth[i] for i in team.permutation(len(world.cloth))[:3])
    bottom, shoes = pick(team, world.trousers), pick(team, world.cloth)
    if chance(rng, 0.4):
        base, accent = accent, base
    pattern = pick(rng, (*PATTERNS, "plain", "plain"))
    return Person(
        build=world.bulk * between(rng, 0.9, 1.35),
        leg=between(rng, 0.45, 0.52),
        head=between(rng, 0.062, 0.075),
        stride=between(rng, 0.2, 0.5),
        skin=pick(rng, world.skin),
        hair=pick(rng, get_args(Hair)),
        hair_colour=pick(rng, world.hair),
        headwear=pick(rng, ("none", "none", "cap", "hat", "beanie")),
        headwear_colour=pick(rng, (base, accent, third)),
        top=pick(rng, get_args(Top)),
        pattern=pattern,
        base=base,
        accent=accent,
        period=pick(rng, (0.065, 0.11)),
        sleeves=pick(rng, (base, base, accent, third)),
        logo="none" if pattern not in ("plain", "fade") else pick(rng, ("none", "chest", "back")),
        bottom=pick(rng, get_args(Bottom)),
        bottom_colour=bottom,
        seam=pick(rng, world.cloth) if chance(rng, 0.3) else None,
        shoes=pick(rng, (shoes, shoes, third)),
        boots=chance(rng, 0.3),
        bag=pick(rng, get_args(Bag)),
        bag_colour=pick(rng, (accent, third, shoes)),
        scarf=pick(rng, world.cloth) if chance(rng, 0.25) else None,
        glasses=chance(rng, 0.3),
        umbrella=pick(rng, world.cloth) if chance(rng, 0.12) else None,
    )
