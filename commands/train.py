"""reid-train: a dataset becomes a checkpoint."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from reidserve.commands.console import (
    DONE,
    FAILED,
    Device,
    Force,
    Json,
    make_app,
    print_facts,
    print_json,
    progress,
    run,
    warn_failures,
)
from reidserve.commands.export import parse_size

if TYPE_CHECKING:
    from reidserve.export.train import Material, Outcome, Record

app = make_app("reid-train")


@app.default
def train(
    data: Path,
    /,
    *,
    out: Path = Path("run"),
    arch: str = "resnet50_ibn_a",
    size: str = "256x128",
    epochs: int = 120,
    batch_identities: int = 16,
    batch_images: int = 4,
    lr: float = 3.5e-4,
    pretrained: Annotated[Path | None, Parameter(show_default=False)] = None,
    freeze_backbone: int = 0,
    eval_every: int = 10,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: Device = "cpu",
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> int:
    """Train a BNNeck network: label-smoothed cross-entropy and batch-hard triplets on batches of P x K images.

    OUT/model.safetensors is the best epoch by mAP, for reid-export --checkpoint; OUT/log.jsonl has a line an epoch.
    A run that was cut off goes on after its last whole epoch when it is started again, and comes to the same weights.
    --force starts over. An image that cannot be read is reported and left out; the exit code is then 1.

    Args:
        data: A dataset in the layout of Market-1501, DukeMTMC-reID, VeRi-776, train/, query/ and gallery/ with a
            folder per identity, or a .csv with the columns path, pid, camid and split.
        out: The folder of the run.
        arch: resnet18, resnet34, resnet50 or resnet101, alone or with _ibn_a or _ibn_b.
        size: Input size, height first.
        epochs: Passes over the training set; warm-up and steps of the learning rate are shares of them.
        batch_identities: Identities in a batch, P.
        batch_images: Images of each, K.
        lr: The learning rate after warm-up; it falls to a tenth after half of the epochs and again after 80 %.
        pretrained: A checkpoint to start from: every tensor but the classifier. Else weights are drawn.
        freeze_backbone: Epochs at the start in which only neck and classifier learn.
        eval_every: Epochs between two evaluations on query and gallery; 0 for none, also not at the end.
        precision: bf16 runs the network in mixed precision.
        seed: Of weights, batches and augmentation.
    """
    height, width = parse_size(size)
    from reidserve.export.train import Settings, check_start, claim_folder, read_material
    from reidserve.export.train import train as run_epochs

    settings = Settings(
        arch=arch,
        height=height,
        width=width,
        epochs=epochs,
        batch_identities=batch_identities,
        batch_images=batch_images,
        lr=lr,
        seed=seed,
        pretrained=None if pretrained is None else str(pretrained),
        freeze_backbone=freeze_backbone,
        eval_every=eval_every,
        precision=precision,
        device=device,
    )
    with claim_folder(out, settings, force=force) as folder:
        check_start(settings, folder)
        with progress("reading") as advance:
            material = read_material(data, settings, scratch=folder.path, progress=advance)
        for note in material.notes:
            _say(f"note: {note}")
        with progress("training") as advance:
            outcome = run_epochs(
                material,
                folder,
                settings,
                say=_say,
                on_epoch=lambda record: _say(_line(record, epochs)),
                progress=advance,
            )
    if json:
        print_json(_facts(outcome, material))
    else:
        warn_failures(material.failures)
        print_facts(
            {
                "wrote": outcome.model,
                "network": f"{arch} at {size}",
                "learnt from": f"{len(material.train)} images of {outcome.classes} identities",
                "epoch": f"{outcome.best.epoch} of {epochs}{' (best by mAP)' if eval_every else ''}",
                **_scores(outcome.best),
            }
        )
    return FAILED if material.failures else DONE


def _facts(outcome: "Outcome", material: "Material") -> dict[str, object]:
    return {
        "model": str(outcome.model),
        "best": asdict(outcome.best),
        "classes": outcome.classes,
        "images": len(material.train),
        "resumed_after": outcome.resumed_after,
        "failures": material.failures,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _line(record: "Record", epochs: int) -> str:
    parts = [f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}"]
    if record.epoch == 0:
        parts.append("before training")
    if record.loss is not None:
        parts += [
            f"loss {record.loss:.3f}",
            f"accuracy {record.accuracy:.3f}",
            f"{record.images_per_second:.0f} images/s",
            f"lr {record.lr:.2e}",
        ]
    return "  ".join([*parts, *(f"{name} {value}" for name, value in _scores(record).items())])


def _scores(record: "Record") -> dict[str, str]:
    if record.rank1 is None:
        return {}
    return {"Rank-1": f"{record.rank1:.4f}", "mAP": f"{record.mAP:.4f}"}


def main() -> None:
    """Run the command."""
    run(app)
