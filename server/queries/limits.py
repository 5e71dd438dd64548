"""Limits: how much a pipeline takes at once."""

from dataclasses import dataclass, fields

from reidserve.errors import ConfigError
from reidserve.index import MAX_TOP_K


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a pipeline takes at once; an embedding or an entry that is searched for counts as an image.

    Attributes:
        images_in_flight: of all queries under way.
        images_per_call: of all searches of one call.
        imports_in_flight: images of all imports under way, beside those of queries.
        queue_seconds: a query that would wait for longer is refused.
        stuck_seconds: an engine that computes one batch for longer is stuck.
        images_per_batch: what a lane of the engine is given at once; None for as many as its session says.
        decoders: threads that decode; None for one a core.
        top_k: hits of one search.

    Raises:
        ConfigError: one of them is not above 0, or a call may have more images than may be under way, or top_k is more
            than a gallery can answer.
    """

    images_in_flight: int = 256
    images_per_call: int = 64
    imports_in_flight: int = 512
    queue_seconds: float = 10.0
    stuck_seconds: float = 30.0
    images_per_batch: int | None = None
    decoders: int | None = None
    top_k: int = MAX_TOP_K

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Written so that NaN fails.
            if value is not None and not value > 0:
                raise ConfigError(f"the limit {field.name} must be above 0, got {value}")
        if self.images_per_call > self.images_in_flight:
            raise ConfigError(
                f"the limit images_per_call must be at most images_in_flight, {self.images_in_flight}, or such a call "
                f"would never be let in; got {self.images_per_call}"
            )
        if self.top_k > MAX_TOP_K:
            raise ConfigError(f"the limit top_k must be at most {MAX_TOP_K:,}, got {self.top_k:,}")


DEFAULTS = Limits()
