"""From a checkpoint: a network in torch becomes an artifact of the contract."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from reidserve.embed import Network, Source
from reidserve.errors import ExportError
from reidserve.export.checkpoints import Checkpoint
from reidserve.export.convert.assembly import Assembled, Blueprint, assemble, check_free
from reidserve.export.convert.feeding import Feeding
from reidserve.export.convert.fold import fold
from reidserve.export.convert.in_torch import TorchEmbedder
from reidserve.export.convert.wrap import wrap
from reidserve.export.model import Network as TorchNetwork
from reidserve.export.model import check_stripes

OPSET = 17
_PIXELS, _FEATURE = "pixels", "feature"


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    feeding: Feeding,
    *,
    flip: bool = False,
    images: Sequence[bytes] = (),
    force: bool = False,
) -> Assembled:
    """Turn a checkpoint's network into an artifact in the folder `out`, its graph folded.

    The written artifact is compared with the network in torch, on the canaries and on encoded `images`, and is left
    nowhere if they differ. With `flip` its graph averages a crop and its mirror image.

    Raises:
        ExportError: the graph does not compute what the network does.
        OutputExistsError: `out` is there already.
    """
    check_free(out, force=force)
    architecture = checkpoint.architecture
    traced = wrap(
        trace(checkpoint.network, height=feeding.height, width=feeding.width),
        feature=_FEATURE,
        height=feeding.height,
        width=feeding.width,
        dim=architecture.feature_dim,
        preprocessing=feeding.preprocessing,
        flip=flip,
    )
    folded = fold(traced)
    stripes = f", {architecture.parts} parts" if architecture.parts else ""
    blueprint = Blueprint(
        feeding=feeding,
        dim=architecture.feature_dim,
        network=Network(
            backbone=architecture.name,
            neck=architecture.neck,
            pooling=f"{architecture.pooling}{stripes}",
            feature="after_neck" if architecture.feature == "after_neck" else "before_neck",
            flip=flip,
        ),
        source=Source(kind="checkpoint", sha256=checkpoint.sha256, dialect=checkpoint.dialect),
    )
    return assemble(
        folded.graph,
        blueprint,
        out,
        reference=TorchEmbedder(checkpoint, feeding, flip=flip).embed,
        before=folded.before,
        images=images,
        force=force,
    )


def trace(network: TorchNetwork, *, height: int, width: int) -> onnx.ModelProto:
    """The evaluation graph of a network: float32 (N, 3, height, width) in, (N, dim) out, N free, one file.

    It has the network's operators as they are: folding them in float64 is left to `fold`. The network is put into
    evaluation mode.

    Raises:
        ExportError: torch cannot write it in plain operators, as where stripes of a map would overlap.
    """
    check_stripes(network.architecture, height=height, width=width)
    written = io.BytesIO()
    # Two images: a batch of one would be taken for a constant by some operators.
    example = torch.from_numpy(np.zeros((2, 3, height, width), np.float32))
    try:
        with warnings.catch_warnings():
            # torch recommends its newer exporter, which writes weights beside the graph, and remarks that an
            # InstanceNorm uses the image's own statistics, as it must.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network.eval(),
                (example,),
                written,  # type: ignore[arg-type]  # a file will do for the exporter that is asked for
                dynamo=False,
                # Or torch folds norms itself, in float32.
                training=torch.onnx.TrainingMode.PRESERVE,
                opset_version=OPSET,
                input_names=[_PIXELS],
                output_names=[_FEATURE],
                dynamic_axes={_PIXELS: {0: "N"}, _FEATURE: {0: "N"}},
            )
    except (torch.onnx.errors.OnnxExporterError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(f"torch cannot export the network at {height}x{width}: {reason}") from error
    return onnx.load_model_from_string(written.getvalue())
