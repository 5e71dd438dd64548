"""reid-export: converting a checkpoint, or adopting an ONNX."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from reidserve.commands.console import DONE, Force, Json, print_facts, print_json, print_lines, progress
from reidserve.commands.export.deriving import Gate, Wanted, derive, show_parity, show_refusal
from reidserve.commands.export.feeding import Said, make_feeding
from reidserve.commands.export.repository import write
from reidserve.errors import ExportError, ImageError, ParityError, UsageError

if TYPE_CHECKING:
    from reidserve.export.convert import Assembled
    from reidserve.export.parity import Parity

_Unsaid = Parameter(show_default=False)

Make = Callable[[Path, bool], "Assembled"]
"""Writes an artifact to a folder, replacing what is there only where that is said."""


def convert(
    model: Annotated[Path | None, _Unsaid] = None,
    /,
    *,
    checkpoint: Annotated[Path | None, _Unsaid] = None,
    onnx: Annotated[Path | None, _Unsaid] = None,
    out: Annotated[Path | None, _Unsaid] = None,
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
    flip: Annotated[bool, Parameter(negative="")] = False,
    images: Annotated[Path | None, _Unsaid] = None,
    triton: Annotated[Path | None, _Unsaid] = None,
    wanted: Wanted = Wanted(),  # noqa: B008
    gate: Gate = Gate(),  # noqa: B008
    force: Force = False,
    json: Json = False,
) -> int:
    """Turn a trained model into an artifact: from a checkpoint, or by adopting an ONNX of any architecture.

    Of MODEL, an artifact that was written so, make other precisions and TensorRT plans: `reid-export model/ --precision
    int8 --calibrate TRAIN --verify DATA`. They lie beside model.onnx and leave its identity as it is. What was made is
    run on every engine here and scored beside model.onnx; if it may lose more points of mAP than its bound, the table
    says so, the exit code is 1, and the artifact is as it was.

    The graph is made to take uint8 RGB crops: colour order, normalisation and L2 are inside, and no caller can get
    them wrong. What was written is run and compared with the checkpoint in torch, or with the foreign ONNX fed by
    hand; if they differ, nothing is left behind.

    A checkpoint of reid-train says all of itself. Of another project's, every tensor is accounted for or it is
    refused, and what its tensors do not tell is asked for. An ONNX that normalises inside (fast-reid) wants
    --mean 0 --std 1/255.

    Args:
        model: An artifact, to make flavours and plans of; in its place, --checkpoint or --onnx. Write ./inspect for one
            of that name.
        checkpoint: A file of reid-train, or of a project that docs/checkpoints.md lists: strong-baseline, fast-reid,
            torchreid, layumi's, PCB and others.
        onnx: In its place, a foreign graph: float32 (N, 3, height, width) in, (N, dim) out, N free.
        out: The folder to write; model/ if nothing is said.
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
        flip: Average the embeddings of a crop and its mirror image, inside the graph: each costs a run of the network,
            and the model is another identity.
        images: A folder of crops to compare on, beside synthetic ones.
        triton: Of MODEL, write a model repository for Triton here: reid/config.pbtxt with the contract, and the graph
            of --precision, or with --tensorrt its plan.
    """
    from reidserve.datasets import path_to_text

    said = {"size": size, "mean": mean, "std": std, "colour": colour, "resize": resize}
    told = {
        "dialect": dialect,
        "arch": arch,
        "last_stride": last_stride,
        "stem_pool": stem_pool,
        "stem_relu": stem_relu,
        "pooling": pooling,
    }
    if model is not None:
        paths = {"checkpoint": checkpoint, "onnx": onnx, "out": out, "images": images}
        others = {**paths, "output": output, "flip": flip or None, **said, **told}
        _refuse_said("of --checkpoint and --onnx, not of a model that was exported", others)
        if triton is not None:
            return write(model, triton, wanted, gate, force=force, json=json)
        return derive(model, wanted, gate, force=force, json=json)
    if (checkpoint is None) == (onnx is None):
        raise UsageError("expected either --checkpoint or --onnx, or a model that was exported")
    if wanted.anything or gate.unverified or triton is not None:
        raise UsageError(
            "--precision, --tensorrt, --triton and --unverified are of a model that was exported: export it first"
        )
    compared = _read_images(images) if images is not None else []
    if onnx is not None:
        _refuse_said("of checkpoints, not of --onnx", told)
        make, remarks = _adopt(onnx, said, output, flip, compared)
    else:
        assert checkpoint is not None
        _refuse_said("of --onnx, not of checkpoints", {"output": output})
        make, remarks = _convert(checkpoint, said, told, flip, compared)
    folder = out if out is not None else Path("model")
    try:
        made, parity = _export(make, folder, gate, force)
    except ParityError as error:
        return show_refusal(error, json=json)
    _report(made, path_to_text(folder), len(compared), remarks, parity, json=json)
    return DONE


def _refuse_said(whose: str, options: Mapping[str, Any]) -> None:
    if names := [name for name, value in options.items() if value is not None]:
        said = f"--{', --'.join(names).replace('_', '-')}"
        raise UsageError(f"{said} {'is' if len(names) == 1 else 'are'} {whose}")


def _export(make: "Make", out: Path, gate: Gate, force: bool) -> "tuple[Assembled, Parity | None]":
    """Write an artifact, which takes its place only if it passes the gate, where one was asked for."""
    verification = gate.verification("fp32")
    if verification is None:
        return make(out, force), None
    from reidserve.export.derive import export_proven

    with progress("verifying") as advance:
        return export_proven(lambda stage: make(stage, False), out, verification, force=force, progress=advance)


def _adopt(
    onnx: Path, said: Said, output: str | None, flip: bool, compared: Sequence[bytes]
) -> "tuple[Make, list[str]]":
    from reidserve.export.convert import adopt

    feeding = make_feeding(said)
    return lambda out, force: adopt(onnx, out, feeding, output=output, flip=flip, images=compared, force=force), []


def _convert(
    checkpoint: Path, said: Said, told: Mapping[str, Any], flip: bool, compared: Sequence[bytes]
) -> "tuple[Make, list[str]]":
    from reidserve.export.checkpoints import read_checkpoint
    from reidserve.export.convert.from_checkpoint import export_checkpoint

    read = read_checkpoint(checkpoint, **told, resize=said["resize"])
    feeding = make_feeding(said, told=read.feeding)
    overruled = [
        f"--{name} {value} was said in place of what the file tells"
        for name, value in said.items()
        if value is not None and read.dialect == "reidserve" and read.feeding is not None
    ]
    return (
        lambda out, force: export_checkpoint(read, out, feeding, flip=flip, images=compared, force=force),
        [*overruled, *read.remarks],
    )


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


def _report(
    made: "Assembled", out: str, images: int, remarks: list[str], parity: "Parity | None", *, json: bool
) -> None:
    """Print what was written."""
    contract = made.contract
    if json:
        print_json(
            {
                "model": out,
                "identity": contract.identity,
                "contract": contract,
                "operators": {"before": made.before, "after": made.after},
                "difference": made.difference,
                "parity": parity,
                "remarks": remarks,
            }
        )
        return
    print_lines(remarks)
    if parity is not None:
        show_parity(parity)
    preprocessing = contract.preprocessing
    print_facts(
        {
            "wrote": out,
            "identity": contract.identity,
            "input": f"{contract.height} x {contract.width}, {contract.resize}, {preprocessing.colour} inside",
            "mean, std": f"{list(preprocessing.mean)}, {list(preprocessing.std)} inside",
            "network": contract.network.backbone or "adopted",
            "graph": _operators(made),
            "embedding": f"{contract.dim} dimensions"
            + (", the mean of the crop and its mirror image" if contract.network.flip else ""),
            "checked": f"largest difference from the {contract.source.kind} on 8 synthetic crops"
            f"{f' and {images} images' if images else ''}: {made.difference:.2g}",
        }
    )


def _operators(made: "Assembled") -> str:
    before, after = sum(made.before.values()), sum(made.after.values())
    return f"{before} operators" + (f", {after} after folding" if made.after != made.before else "")
