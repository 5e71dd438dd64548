"""The record of an adaptation's epoch: one line of its `log.jsonl`."""

from dataclasses import dataclass

from reidserve.export.train import Record


@dataclass(frozen=True, slots=True)
class AdaptRecord(Record):
    """What an epoch came to; its loss is the sum of all terms, its ranks are on the target's query and gallery.

    Attributes:
        source_loss: mean over the batches; None where the mode has no such term.
        target_loss: likewise.
        clusters: of the target's images, before the epoch.
        noise: share of the target's images that were in none, and were left out.
        pair_f: agreement of the clusters with the target's identities, where these are known; nothing is learnt from
            it.
    """

    source_loss: float | None = None
    target_loss: float | None = None
    clusters: int | None = None
    noise: float | None = None
    pair_f: float | None = None
