"""A run: epochs from the first, or from where it was cut off, to the last; what is best is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from reidserve.errors import DeviceError
from reidserve.export.checkpoints import Feed, load_pretrained, write_checkpoint
from reidserve.export.model import Network, build_network, parse_architecture
from reidserve.export.train.epoch import Learner, learn_epoch, memory_format
from reidserve.export.train.folder import RunFolder, refuse_differences
from reidserve.export.train.losses import make_loss
from reidserve.export.train.material import Material
from reidserve.export.train.record import Record
from reidserve.export.train.settings import Settings
from reidserve.export.train.state import State, restore, write_state
from reidserve.export.train.validation import validate


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has come to.

    Attributes:
        model: the best checkpoint by mAP, or where nothing was evaluated the last.
        best: the record of its epoch.
        classes: identities it was trained to tell apart.
        resumed_after: epochs that an earlier process had done.
    """

    model: Path
    best: Record
    classes: int
    resumed_after: int


def train(
    material: Material,
    folder: RunFolder,
    settings: Settings,
    *,
    say: Callable[[str], None] = lambda line: None,
    on_epoch: Callable[[Record], None] = lambda record: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Train a network, from the start or from where the folder's run was cut off.

    `say` hears lines for people, `on_epoch` each epoch's record, `progress` the batches of all epochs. On one CPU
    and number of threads the weights depend on the data and the settings alone, however often the run was cut off.

    Raises:
        ExportError: the loss is no finite number; the last good state is kept.
        OutputExistsError: the run was cut off on other data.
    """
    learner = make_learner(settings, material.classes)
    state = folder.unfinished
    if state is None:
        state = _begin(learner, material, folder, say, on_epoch)
    else:
        _go_on(learner, material, folder, state, say)
    resumed_after = state.epoch
    for epoch in range(state.epoch + 1, settings.epochs + 1):
        record = learn_epoch(learner, material, epoch, progress=progress)
        record = _evaluated(record, learner, material)
        state = replace(state, epoch=epoch)
        if not settings.eval_every or _is_better(record, state.best):
            state = replace(state, best=record)
            write_checkpoint(folder.model, learner.network, describe(record, settings, material))
        folder.append(record)
        write_state(folder.state, state, learner.network, learner.optimiser)
        on_epoch(record)
    assert state.best is not None, "the last epoch is evaluated, or none"
    return Outcome(folder.model, state.best, material.classes, resumed_after)


def check_start(settings: Settings, folder: RunFolder) -> None:
    """Refuse, before images are read, what would be refused after.

    Raises:
        DeviceError: the device is not there.
        CheckpointError: the pretrained file is not what the architecture needs.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("asked for cuda, torch finds none: give --device cpu, or install torch for CUDA")
    if settings.pretrained is not None and folder.unfinished is None:
        load_pretrained(build_network(parse_architecture(settings.arch)), Path(settings.pretrained))


def make_learner(settings: Settings, classes: int) -> Learner:
    """A network with the weights of the seed, and its optimiser."""
    network = build_network(parse_architecture(settings.arch, classes=classes), seed=settings.seed)
    network = network.to(settings.device, memory_format=memory_format(settings))  # type: ignore[call-overload]
    # Each weight is decayed apart from its gradient (Loshchilov and Hutter, 2019); the rate is set at every step.
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    return Learner(network, optimiser, make_loss(settings), settings)


def describe(record: Record, settings: Settings, material: Material) -> dict[str, str]:
    """The metadata of a checkpoint: how its network is fed, which the export reads, and where it comes from."""
    feed = Feed(
        mean=settings.mean,
        std=settings.std,
        colour="rgb",
        resize=settings.resize,
        height=settings.height,
        width=settings.width,
    )
    facts = {
        "dataset": material.name,
        "training_images": len(material.train),
        "fingerprint": material.fingerprint,
        "epoch": record.epoch,
        "epochs": settings.epochs,
        "rank1": record.rank1,
        "mAP": record.mAP,
        "seed": settings.seed,
        "precision": settings.precision,
        "reidserve": version("reidserve"),
        "torch": torch.__version__,
    }
    return {**feed.to_metadata(), **{name: str(value) for name, value in facts.items() if value is not None}}


def _begin(
    learner: Learner,
    material: Material,
    folder: RunFolder,
    say: Callable[[str], None],
    on_epoch: Callable[[Record], None],
) -> State:
    settings = learner.settings
    if settings.pretrained is not None:
        for line in load_pretrained(learner.network, Path(settings.pretrained)):
            say(f"not taken from {settings.pretrained}: {line}")
    if settings.freeze_backbone:
        frozen, total = count_frozen(learner.network)
        say(f"the backbone is frozen for {settings.freeze_backbone} epochs: {frozen:,} of {total:,} parameters")
    record = _evaluated(Record(epoch=0), learner, material)
    state = State(
        epoch=0, best=None, fingerprint=material.fingerprint, settings=settings, threads=torch.get_num_threads()
    )
    write_state(folder.state, state, learner.network, learner.optimiser)
    folder.model.unlink(missing_ok=True)
    folder.rewind(-1)
    folder.append(record)
    on_epoch(record)
    return state


def _go_on(learner: Learner, material: Material, folder: RunFolder, state: State, say: Callable[[str], None]) -> None:
    if state.fingerprint != material.fingerprint:
        refuse_differences(folder.path, state, ["the training images or their pids are not those it began with"])
    if state.threads != torch.get_num_threads():
        say(
            f"the run was cut off with {state.threads} processor threads, this process has {torch.get_num_threads()}: "
            "the weights will differ in their last digits from those of a run that was not cut off"
        )
    restore(folder.state, learner.network, learner.optimiser)
    folder.rewind(state.epoch)
    if state.best is None:
        folder.model.unlink(missing_ok=True)
    say(f"going on after epoch {state.epoch}")


def _evaluated(record: Record, learner: Learner, material: Material) -> Record:
    """The record with Rank-1 and mAP, where its epoch is one that is evaluated."""
    settings = learner.settings
    due = settings.eval_every and (record.epoch % settings.eval_every == 0 or record.epoch == settings.epochs)
    if material.trial is None or not due:
        return record
    report = validate(learner.network, material.trial, mean=settings.mean, std=settings.std)
    return replace(record, rank1=report.rank1, mAP=report.mAP)


def _is_better(record: Record, best: Record | None) -> bool:
    return record.mAP is not None and (best is None or best.mAP is None or record.mAP > best.mAP)


def count_frozen(network: Network) -> tuple[int, int]:
    """Parameters of the backbone, and all parameters."""
    frozen, total = (sum(p.numel() for p in module.parameters()) for module in (network.backbone, network))
    return frozen, total
