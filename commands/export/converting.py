"""reid-export: converting a checkpoint, or adopting an ONNX."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from reidserve.commands.console import Force, Json, print_facts, print_json, print_lines
from reidserve.commands.export.feeding import Said, make_feeding
from reidserve.errors import ExportError, ImageError, UsageError

if TYPE_CHECKING:
    from reidserve.export.convert import Assembled

_Unsaid = Parameter(show_default=False)


def convert(
    *,
    checkpoint: Annotated[Path | None, _Unsaid] = None,
    onnx: Annotated[Path | None, _Unsaid] = None,
    out: Path = Path("model"),
    size: Annotated[str | None, _Unsaid] = None,
    mean: Annotated[str | None, _Unsaid] = None,
    std: Annotated[str | None, _Unsaid] = None,
    colour: Annotated[Literal["rgb", "bgr"] | None, _Unsaid] = None,
    resize: Annotated[Literal["nearest", "bilinear", "bicubic", "lanczos"] | None, _Unsaid] = None,
    dialect: Annotated[str | None, _Unsaid] = None,
    arch: Annotated[str | None, _Unsaid] = None,
    last_stride: Annotated[Literal[1, 2] | None, _Unsaid] = None,
    stem_pool: Annotated[Literal["padded", "halving", "ceil"] | None, _Unsaid] = None,
    stem_relu: Annotated[bool | None, _Unsaid] = None,
    pooling: Annotated[Literal["average", "gem"] | None, _Unsaid] = None,
    output: Annotated[str | None, _Unsaid] = None,
    images: Annotated[Path | None, _Unsaid] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a trained model into an artifact: from a checkpoint, or by adopting an ONNX of any architecture.

    The graph is made to take uint8 RGB crops: colour order, normalisation and L2 are inside, and no caller can get
    them wrong. What was written is run and compared with the checkpoint in torch, or with the foreign ONNX fed by
    hand; if they differ, nothing is left behind.

    A checkpoint of reid-train says all of itself. Of another project's, every tensor is accounted for or it is
    refused, and what its tensors do not tell is asked for. An ONNX that normalises inside (fast-reid) wants
    --mean 0 --std 1/255.

    Args:
        checkpoint: A file of reid-train, or of a project that docs/checkpoints.md lists: strong-baseline, fast-reid,
            torchreid, layumi's, PCB and others.
        onnx: In its place, a foreign graph: float32 (N, 3, height, width) in, (N, dim) out, N free.
        out: The folder to write.
        size: Input size, height first, such as 256x128; only reid-train's own checkpoints tell it.
        mean: Mean of the training pixels in 0..1, one number or one per channel of --colour; ImageNet's if nothing
            tells another.
        std: Their standard deviation, likewise; fractions such as 1/255 are read.
        colour: The channel order the model was trained on; rgb if nothing tells another.
        resize: The Pillow filter its crops were resized with; of an ONNX, bilinear if nothing is said.
        dialect: The project a checkpoint is of, for what is usual there.
        arch: The architecture a checkpoint must be of, such as resnet50_ibn_a.
        last_stride: The stride of a checkpoint's last stage.
        stem_pool: The pooling of its stem.
        stem_relu: Whether a ReLU follows the norm of its stem.
        pooling: Its global pooling.
        output: The output of an ONNX that is the embedding, where it has several.
        images: A folder of crops to compare on, beside synthetic ones.
    """
    from reidserve.datasets import path_to_text

    if (checkpoint is None) == (onnx is None):
        raise UsageError("expected either --checkpoint or --onnx")
    compared = _read_images(images) if images is not None else []
    said = {"size": size, "mean": mean, "std": std, "colour": colour, "resize": resize}
    told = {
        "dialect": dialect,
        "arch": arch,
        "last_stride": last_stride,
        "stem_pool": stem_pool,
        "stem_relu": stem_relu,
        "pooling": pooling,
    }
    if onnx is not None:
        if any(value is not None for value in told.values()):
            raise UsageError(f"--{', --'.join(told).replace('_', '-')} are of checkpoints, not of --onnx")
        made, remarks = _adopt(onnx, out, said, output, compared, force)
    else:
        assert checkpoint is not None
        if output is not None:
            raise UsageError("--output is of --onnx, not of checkpoints")
        made, remarks = _convert(checkpoint, out, said, told, compared, force)
    _report(made, path_to_text(out), len(compared), remarks, json=json)


def _adopt(
    onnx: Path, out: Path, said: Said, output: str | None, compared: Sequence[bytes], force: bool
) -> tuple["Assembled", list[str]]:
    from reidserve.export.convert import adopt

    return adopt(onnx, out, make_feeding(said), output=output, images=compared, force=force), []


def _convert(
    checkpoint: Path, out: Path, said: Said, told: Mapping[str, Any], compared: Sequence[bytes], force: bool
) -> tuple["Assembled", list[str]]:
    from reidserve.export.checkpoints import read_checkpoint
    from reidserve.export.convert.from_checkpoint import export_checkpoint

    read = read_checkpoint(checkpoint, **told, resize=said["resize"])
    feeding = make_feeding(said, told=read.feeding)
    overruled = [
        f"--{name} {value} was said in place of what the file tells"
        for name, value in said.items()
        if value is not None and read.dialect == "reidserve" and read.feeding is not None
    ]
    return export_checkpoint(read, out, feeding, images=compared, force=force), [*overruled, *read.remarks]


def _read_images(folder: Path) -> list[bytes]:
    from reidserve.datasets import path_to_text, read_crops
    from reidserve.embed import decode, read_image

    images = []
    for crop in read_crops(folder):
        try:
            images.append(read_image(crop.path))
            decode(images[-1])
        except ImageError as error:
            raise ExportError(f"{path_to_text(crop.path)}: {error}") from error
    return images


def _report(made: "Assembled", out: str, images: int, remarks: list[str], *, json: bool) -> None:
    """Print what was written."""
    contract = made.contract
    if json:
        print_json(
            {
                "model": out,
                "identity": contract.identity,
                "contract": contract,
                "difference": made.difference,
                "remarks": remarks,
            }
        )
        return
    print_lines(remarks)
    preprocessing = contract.preprocessing
    print_facts(
        {
            "wrote": out,
            "identity": contract.identity,
            "input": f"{contract.height} x {contract.width}, {contract.resize}, {preprocessing.colour} inside",
            "mean, std": f"{list(preprocessing.mean)}, {list(preprocessing.std)} inside",
            "network": contract.network.backbone or "adopted",
            "embedding": f"{contract.dim} dimensions",
            "checked": f"largest difference from the {contract.source.kind} on 8 synthetic crops"
            f"{f' and {images} images' if images else ''}: {made.difference:.2g}",
        }
    )
