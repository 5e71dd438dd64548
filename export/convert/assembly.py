"""Assembly: a graph of the contract becomes an artifact folder, proven by running what was written."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from reidserve.embed import (
    Batch,
    Contract,
    Embedder,
    Embeddings,
    Network,
    Source,
)
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.canaries import CANARIES_FILE, draw_canaries, encode_canaries
from reidserve.embed.contract import MODEL_FILE, decode_contract, encode_contract
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import ArtifactError, EmbeddingError, ExportError, OutputExistsError
from reidserve.export.convert.feeding import Feeding
from reidserve.export.convert.fold import count_operators

_EVERYWHERE = (MODEL_FILE, CANARIES_FILE)

_TOGETHER = 32
"""Crops that are run at once: of --images there may be thousands."""

PARITY_BOUND = 1e-5
"""Largest difference in any component of a unit embedding between the written graph and its reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What an artifact will promise, before there is one.

    Attributes:
        feeding: what its graph is fed, and does to it.
        dim: dimensions of an embedding.
        network: what is known of the architecture.
        source: where the weights came from.
    """

    feeding: Feeding
    dim: int
    network: Network
    source: Source


@dataclass(frozen=True, slots=True)
class Assembled:
    """An artifact that was written.

    Attributes:
        contract: what it promises.
        difference: the largest difference in any component from the reference, over all crops compared.
        before: how many operators of each type the graph had before it was folded.
        after: how many the written graph has.
        reference: what it was held to, a Batch (N, height, width, 3) to Embeddings (N, dim).
    """

    contract: Contract
    difference: float
    before: Mapping[str, int]
    after: Mapping[str, int]
    reference: Callable[[Batch], Embeddings]


def assemble(
    graph: onnx.ModelProto,
    blueprint: Blueprint,
    out: Path,
    *,
    reference: Callable[[Batch], Embeddings],
    before: Mapping[str, int] | None = None,
    images: Sequence[bytes] = (),
    force: bool = False,
) -> Assembled:
    """Write a graph as an artifact, run what was written, and hold it against the reference on crops.

    Those are the canaries and whatever encoded `images` are given beside them. `before` counts the operators of a
    graph that was folded.

    Raises:
        ExportError: the written graph differs from the reference by more than PARITY_BOUND, or depends on the batch.
        OutputExistsError: `out` is there already (and is no artifact, or `force` was not given).
    """
    model = graph.SerializeToString(deterministic=True)
    with staged_artifact(out, force=force) as stage:
        write_file(stage / MODEL_FILE, model)
        try:
            embedder = Embedder(_contract(blueprint, {MODEL_FILE: model}), OnnxSession(model, whole=True))
            crops = draw_canaries(height=blueprint.feeding.height, width=blueprint.feeding.width)
            embeddings, difference = _prove(embedder, [*crops, *images], reference)
        except (ArtifactError, EmbeddingError) as error:
            raise ExportError(f"the written graph is no embedder: {error}") from error
        canaries = encode_canaries(crops, {embedder.engine: embeddings[: len(crops)]})
        contract = _contract(blueprint, {MODEL_FILE: model, CANARIES_FILE: canaries})
        write_file(stage / CANARIES_FILE, canaries)
        write_file(stage / CONTRACT_FILE, encode_contract(contract))
    after = count_operators(graph)
    return Assembled(contract, difference, before=after if before is None else before, after=after, reference=reference)


def _prove(
    embedder: Embedder, crops: Sequence[bytes], reference: Callable[[Batch], Embeddings]
) -> tuple[Embeddings, float]:
    """The embeddings of the crops and their largest difference from the reference's, both as they must be."""
    batch = np.stack([embedder.prepare(crop) for crop in crops])
    parts = [batch[start : start + _TOGETHER] for start in range(0, len(batch), _TOGETHER)]
    together = np.concatenate([embedder.embed(part) for part in parts])
    difference = float(np.abs(together - np.concatenate([reference(part) for part in parts])).max())
    if not difference <= PARITY_BOUND:
        raise ExportError(
            f"the written graph differs from the model by {difference:.2g}, at most {PARITY_BOUND:g} was expected"
        )
    # A graph that mixes the images of a batch would score differently under load.
    alone = [embedder.embed_each(image[np.newaxis])[0] for image in batch]
    mixing = max(
        np.inf if isinstance(answer, EmbeddingError) else float(np.abs(answer - row).max())
        for answer, row in zip(alone, together, strict=True)
    )
    if not mixing <= PARITY_BOUND:
        raise ExportError(
            f"an image's embedding depends on its batch (alone and together differ by {mixing:.2g}): "
            "was the model exported in training mode?"
        )
    return together, difference


def _contract(blueprint: Blueprint, files: dict[str, bytes]) -> Contract:
    feeding = blueprint.feeding
    return Contract(
        height=feeding.height,
        width=feeding.width,
        resize=feeding.resize,
        dim=blueprint.dim,
        preprocessing=feeding.preprocessing,
        network=blueprint.network,
        source=blueprint.source,
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )


@contextmanager
def staged_artifact(out: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and is removed when not.

    Raises:
        OutputExistsError: `out` is there and is not an artifact that `force` allows to replace.
    """
    check_free(out, force=force)
    with staged_folder(out) as stage:
        yield stage


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and is removed when not."""
    out = Path(os.path.realpath(out))  # a link to a model stays, what it leads to is replaced
    missing = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        stage.chmod(0o755)  # mkdtemp makes folders for one's own eyes only
        yield stage
        _fsync(stage)
        _take_place(stage, out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise
    _fsync(out.parent)


def check_free(out: Path, *, force: bool) -> None:
    """See that an artifact may be written to `out`.

    Raises:
        OutputExistsError: `out` is there and is not an artifact that `force` allows to replace.
    """
    if not _occupied(out):
        return
    if not (out / CONTRACT_FILE).is_file():
        raise OutputExistsError(f"{out} is there already and is no model: choose another --out")
    if not force:
        raise OutputExistsError(f"{out} holds a model already: choose another --out, or replace it with --force")
    own = _own_files(out)
    strangers = sorted(path.name for path in out.iterdir() if path.name not in own)
    if strangers:
        raise OutputExistsError(
            f"{out} holds more than a model, which replacing it would delete ({', '.join(strangers[:5])}): move that "
            "elsewhere, or choose another --out"
        )


def _own_files(out: Path) -> set[str]:
    """Names of an artifact's files: what its contract lists, and what every artifact has."""
    with suppress(ArtifactError, OSError):
        return {CONTRACT_FILE, *_EVERYWHERE, *decode_contract((out / CONTRACT_FILE).read_bytes()).files}
    return {CONTRACT_FILE, *_EVERYWHERE}


def _occupied(out: Path) -> bool:
    """Whether something is lost if `out` is written over: anything but an empty folder."""
    return out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None)


def _take_place(stage: Path, out: Path) -> None:
    if not _occupied(out):
        stage.rename(out)
        return
    old = stage.with_suffix(".old")
    out.rename(old)
    try:
        stage.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file, to the disk itself."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
