"""A first export under proof: what was assembled takes its place only if it ranks as what it was made from does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reidserve.embed import Batch, Contract, Embedding, Embeddings, Image, decode, off_unit, read_artifact, resize
from reidserve.errors import EmbeddingError
from reidserve.export.convert import Assembled
from reidserve.export.convert.assembly import staged_artifact
from reidserve.export.derive.addition import Addition, publish
from reidserve.export.derive.proof import (
    Verification,
    candidates_of,
    prove,
    reference_of,
    start_engines,
    start_reference,
    with_canaries,
)
from reidserve.export.derive.record import encode_record
from reidserve.export.parity import Candidate, Parity


class HeldTo:
    """What an artifact was held to when it was assembled, as something that embeds crops.

    Attributes:
        name: what its figures are kept under.
    """

    def __init__(self, contract: Contract, reference: Callable[[Batch], Embeddings]) -> None:
        self.name = "fp32/torch-cpu" if contract.source.kind == "checkpoint" else "fp32/onnx-by-hand"
        self._contract = contract
        self._reference = reference

    def prepare(self, data: bytes) -> Image:
        """Encoded bytes to one (height, width, 3) uint8 row of a Batch.

        Raises:
            ImageError: the bytes are no image that is accepted.
        """
        contract = self._contract
        return resize(decode(data), height=contract.height, width=contract.width, resize_filter=contract.resize)

    def embed_each(self, batch: Batch) -> list[Embedding | EmbeddingError]:
        """Per image of a Batch its embedding (dim,), or what was wrong with it."""
        rows = self._reference(batch)
        answers: list[Embedding | EmbeddingError] = list(rows)
        for place, length in off_unit(rows):
            answers[place] = EmbeddingError(f"the network gave no unit vector, its length is {length:g}")
        return answers


def export_proven(
    make: Callable[[Path], Assembled],
    out: Path,
    verification: Verification,
    *,
    force: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Assembled, Parity]:
    """Have an artifact made, and prove it on every engine here against what it was made from.

    `make` writes it to an empty folder, which becomes `out` if it passes; else nothing is left.

    Raises:
        ParityError: it does not rank as what it was made from does.
        ExportError: it cannot be made.
        OutputExistsError: `out` is there already (and is no artifact, or `force` was not given).
    """
    with staged_artifact(out, force=force) as stage:
        made = make(stage)
        artifact = read_artifact(stage)
        held = HeldTo(artifact.contract, made.reference)
        addition = Addition(precision="fp32")
        others = start_engines(artifact, addition)
        parity = prove(
            Candidate(held.name, "fp32", held),
            [reference_of(start_reference(artifact)), *candidates_of(others, "fp32")],
            verification,
            progress=progress,
        )
        canaries = with_canaries(artifact.canaries, others, addition)
        contract = publish(artifact, artifact.contract, canaries, encode_record((parity,)))
    return replace(made, contract=contract), parity
