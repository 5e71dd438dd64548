"""Which operators a lower precision harms, found by measuring: one alone, and then how many must be spared."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from reidserve.embed import Batch, Embeddings
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import ExportError
from reidserve.export.flavours.operators import operators

Make = Callable[[Collection[str]], onnx.ModelProto]
"""Makes the flavour of a graph in which the operators given, named by their first output, are kept in float32."""


def rank_sensitivity(graph: onnx.ModelProto, make: Make, batch: Batch) -> list[tuple[str, float]]:
    """How much the embeddings of a Batch turn when one operator alone is in low precision, the most sensitive first.

    The loss is 1 - cosine, the mean over the crops: 0 for an operator that the flavour leaves alone, infinity for one
    that it cannot hold, because a weight or what the operator gives is too large. Equal losses stay in the graph's
    order.

    Raises:
        ExportError: the flavour cannot be made even with every operator kept.
    """
    candidates = operators(graph)
    whole = _bytes(make(candidates))
    reference = OnnxSession(_bytes(graph))(batch)

    def loss(name: str) -> float:
        try:
            lowered = _bytes(make([other for other in candidates if other != name]))
        except ExportError:
            return math.inf
        return 0.0 if lowered == whole else _turned(reference, OnnxSession(lowered)(batch))

    return sorted(((name, loss(name)) for name in candidates), key=lambda entry: -entry[1])


def _bytes(graph: onnx.ModelProto) -> bytes:
    return graph.SerializeToString(deterministic=True)


def _turned(reference: Embeddings, embeddings: Embeddings) -> float:
    cosines = np.einsum("nd,nd->n", reference.astype(np.float64), embeddings.astype(np.float64))
    loss = 1 - float(cosines.mean())
    return max(loss, 0.0) if math.isfinite(loss) else math.inf


@dataclass(frozen=True, slots=True)
class Chosen:
    """A flavour that loses no more than it may.

    Attributes:
        graph: the flavour.
        kept: the operators left in float32, the most sensitive first.
        lost: what it loses, points of mAP (0..100).
    """

    graph: onnx.ModelProto
    kept: tuple[str, ...]
    lost: float


def choose_kept(
    ranking: Sequence[tuple[str, float]], make: Make, lost: Callable[[onnx.ModelProto], float], *, budget: float
) -> Chosen:
    """The flavour that keeps the first 0, 1, 2, 4, 8... operators of a ranking: the first one within the budget.

    Operators of infinite loss are kept in any case, and not counted. `lost` says how many points of mAP (0..100) a
    flavour loses, `budget` how many it may.

    Raises:
        ExportError: even sparing most operators loses more.
    """
    impossible = sum(loss == math.inf for _, loss in ranking)
    more, found = 0, math.inf
    kept: tuple[str, ...] = ()
    while not more or impossible + more < len(ranking):
        kept = tuple(name for name, _ in ranking[: impossible + more])
        graph = make(kept)
        points = lost(graph)
        if points <= budget:
            return Chosen(graph, kept, points)
        found = min(found, points)
        more = max(1, 2 * more)
    raise ExportError(
        f"this precision loses {found:.2f} points of mAP at best, with up to {len(kept)} of {len(ranking)} operators "
        f"kept in float32; {budget:g} were allowed: calibrate with more crops, or allow more"
    )
