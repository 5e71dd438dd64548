"""reid-export: a model becomes an artifact."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from reidserve.commands.console import Force, Json, make_app, print_facts, print_json, run
from reidserve.errors import UsageError

app = make_app("reid-export")

Triple = tuple[float, float, float]


@app.default
def export(
    *,
    onnx: Path,
    size: str,
    out: Path = Path("model"),
    mean: str = "0.485,0.456,0.406",
    std: str = "0.229,0.224,0.225",
    colour: Literal["rgb", "bgr"] = "rgb",
    resize: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear",
    output: Annotated[str | None, Parameter(show_default=False)] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a trained model into an artifact: adopt an ONNX of any architecture.

    The graph is wrapped so that it takes uint8 RGB crops: colour order, normalisation and L2 are inside, and no
    caller can get them wrong. What was written is run and compared with the foreign model fed by hand; if they
    differ, nothing is left behind. A model that normalises inside (fast-reid) wants --mean 0 --std 1/255.

    Args:
        onnx: The foreign graph: float32 (N, 3, height, width) in, (N, dim) out, N free.
        size: Input size, height first, such as 256x128.
        out: The folder to write.
        mean: Mean of the training pixels in 0..1, one number or one per channel of --colour.
        std: Their standard deviation, likewise; fractions such as 1/255 are read.
        colour: The channel order the model was trained on.
        resize: The Pillow filter its crops were resized with.
        output: The output that is the embedding, where the graph has several.
    """
    from reidserve.datasets import path_to_text
    from reidserve.embed import Preprocessing
    from reidserve.export.convert import Feeding, adopt

    height, width = parse_size(size)
    preprocessing = Preprocessing(mean=parse_triple("--mean", mean), std=parse_triple("--std", std), colour=colour)
    feeding = Feeding(height=height, width=width, resize=resize, preprocessing=preprocessing)
    adopted = adopt(onnx, out, feeding, output=output, force=force)
    contract = adopted.contract
    if json:
        print_json(
            {
                "model": path_to_text(out),
                "identity": contract.identity,
                "dim": contract.dim,
                "height": contract.height,
                "width": contract.width,
                "difference": adopted.difference,
            }
        )
        return
    print_facts(
        {
            "wrote": path_to_text(out),
            "identity": contract.identity,
            "input": f"{contract.height} x {contract.width}, {contract.resize}, {colour} inside",
            "embedding": f"{contract.dim} dimensions",
            "checked": f"largest difference from {path_to_text(Path(onnx.name))} fed by hand: {adopted.difference:.2g}",
        }
    )


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


def main() -> None:
    """Run the command."""
    run(app)
