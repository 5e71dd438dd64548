"""The two worlds: what a domain's people wear, its cars are painted, its streets look like, its light does."""

from dataclasses import dataclass

from reidserve.datasets.synth.canvas import Colour
from reidserve.datasets.synth.spec import Domain


@dataclass(frozen=True, slots=True)
class World:
    """The manner of a domain.

    Attributes:
        cloth: colours of garments and what is printed on them; few, so that many identities share each.
        trousers: colours of what is worn below.
        skin: colours of skin.
        hair: colours of hair.
        paint: colours of vehicles and their markings.
        bulk: girth of clothing, 1 for close-fitting.
        outline: width of the line around shapes, 0 for none.
        roundness: how strongly a body is shaded towards its edges.
        lamp: colour of the light, shares of red, green and blue.
        gain: range of the cameras' exposure.
        cast: largest colour cast of a camera, a share.
        gamma: range of the cameras' gamma.
        noise: range of the cameras' sensor noise, grey levels.
        blur: range of the cameras' blur, pixels.
        quality: range of the cameras' JPEG quality.
        indoors: whether scenes have a ceiling of lamps in place of a sky.
        ground: colours of floors and roads.
        walls: colours of buildings and walls.
    """

    cloth: tuple[Colour, ...]
    trousers: tuple[Colour, ...]
    skin: tuple[Colour, ...]
    hair: tuple[Colour, ...]
    paint: tuple[Colour, ...]
    bulk: float
    outline: float
    roundness: float
    lamp: tuple[float, float, float]
    gain: tuple[float, float]
    cast: float
    gamma: tuple[float, float]
    noise: tuple[float, float]
    blur: tuple[float, float]
    quality: tuple[int, int]
    indoors: bool
    ground: tuple[Colour, ...]
    walls: tuple[Colour, ...]


DAYLIGHT = World(
    cloth=(
        (34, 34, 40), (234, 234, 228), (128, 132, 138), (192, 40, 46), (34, 50, 112), (66, 130, 206),
        (48, 132, 74), (236, 198, 58),
    ),
    trousers=((30, 30, 36), (52, 72, 122), (150, 150, 152), (186, 160, 116), (92, 62, 44)),
    skin=((236, 196, 166), (206, 158, 122), (150, 104, 74), (98, 66, 48)),
    hair=((28, 22, 20), (84, 54, 34), (204, 164, 92), (150, 146, 142)),
    paint=(
        (36, 38, 42), (232, 232, 230), (164, 170, 176), (188, 34, 36), (32, 62, 138), (90, 150, 206),
        (40, 104, 66), (240, 190, 40),
    ),
    bulk=1.0, outline=0.0, roundness=0.5,
    lamp=(1.0, 1.0, 1.0), gain=(0.84, 1.12), cast=0.07, gamma=(0.9, 1.12),
    noise=(2.0, 5.0), blur=(0.3, 0.7), quality=(72, 92),
    indoors=False,
    ground=((150, 146, 138), (118, 120, 124), (172, 156, 132), (96, 122, 72)),
    walls=((186, 168, 142), (150, 92, 74), (196, 200, 204), (112, 128, 142)),
)  # fmt: skip

LAMPLIGHT = World(
    cloth=(
        (66, 58, 62), (240, 224, 196), (36, 118, 122), (204, 148, 44), (122, 36, 62), (176, 156, 206),
        (110, 122, 58), (226, 130, 104),
    ),
    trousers=((46, 42, 52), (116, 96, 82), (88, 104, 96), (206, 188, 168), (70, 60, 104)),
    skin=((242, 208, 186), (216, 170, 138), (164, 116, 88), (112, 78, 62)),
    hair=((40, 30, 34), (120, 62, 40), (222, 190, 130), (172, 60, 52)),
    paint=(
        (58, 52, 58), (238, 226, 204), (40, 124, 120), (206, 132, 40), (112, 32, 52), (164, 150, 196),
        (104, 112, 52), (214, 110, 90),
    ),
    bulk=1.1, outline=0.009, roundness=0.2,
    lamp=(1.08, 0.94, 0.74), gain=(0.7, 0.9), cast=0.06, gamma=(0.9, 1.08),
    noise=(4.0, 7.0), blur=(0.3, 0.8), quality=(60, 84),
    indoors=True,
    ground=((92, 78, 66), (70, 72, 84), (128, 112, 98), (84, 62, 58)),
    walls=((122, 98, 74), (72, 84, 96), (150, 132, 112), (88, 66, 82)),
)  # fmt: skip

WORLDS: dict[Domain, World] = {"a": DAYLIGHT, "b": LAMPLIGHT}
