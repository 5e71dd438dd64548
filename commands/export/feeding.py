"""How a network is fed, as it is said to reid-export and reid-eval."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.export.checkpoints import Feed
    from reidserve.export.convert import Feeding

Triple = tuple[float, float, float]
Said = Mapping[str, Any]
"""What was said of the feeding: size, mean, std, colour and resize, None where nothing was."""

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def make_feeding(said: Said, *, told: "Feed | None" = None) -> "Feeding":
    """How the network is fed: as was said, else as the checkpoint tells, else as ImageNet's networks are.

    Raises:
        UsageError: nothing tells the size, or what was said does not read.
    """
    from reidserve.embed import Preprocessing
    from reidserve.export.convert import Feeding

    size = said["size"]
    if size is not None:
        height, width = parse_size(size)
    elif told is not None and told.height is not None and told.width is not None:
        height, width = told.height, told.width
    else:
        raise UsageError("--size HEIGHTxWIDTH is needed, such as 256x128: nothing else tells the input size")
    mean, std = said["mean"], said["std"]
    usual_colour = told.colour if told is not None else "rgb"
    usual_mean, usual_std = (told.mean, told.std) if told is not None else (IMAGENET_MEAN, IMAGENET_STD)
    colour = said["colour"] or usual_colour
    if colour != usual_colour:
        usual_mean, usual_std = _turned(usual_mean), _turned(usual_std)
    preprocessing = Preprocessing(
        mean=parse_triple("--mean", mean) if mean is not None else usual_mean,
        std=parse_triple("--std", std) if std is not None else usual_std,
        colour=colour,
    )
    resize = said["resize"] or (told.resize if told is not None else "bilinear")
    return Feeding(height=height, width=width, resize=resize, preprocessing=preprocessing)


def _turned(triple: Triple) -> Triple:
    """The numbers of red, green and blue in the other order: they belong to the colour, not to its place."""
    return triple[2], triple[1], triple[0]


def parse_size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH, pixels.

    Raises:
        UsageError: it is something else.
    """
    height, cross, width = text.partition("x")
    if not (cross and height.isascii() and height.isdigit() and width.isascii() and width.isdigit()):
        raise UsageError(f"--size must be HEIGHTxWIDTH, such as 256x128, got {text!r}")
    return int(height), int(width)


def parse_triple(flag: str, text: str) -> Triple:
    """Read one number or three with commas between, each a decimal or a fraction such as 1/255.

    Raises:
        UsageError: it is something else.
    """
    try:
        numbers = [_parse_number(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{flag} must be one number or three, such as 0.485,0.456,0.406, got {text!r}") from error
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(f"{flag} must be one number or three, got {len(numbers)}")
    return numbers[0], numbers[1], numbers[2]


def _parse_number(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)
