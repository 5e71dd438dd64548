"""Recent: what a pipeline did in the last seconds, for those who look at it now; telemetry keeps the rest."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reidserve.server.queries.telemetry import Telemetry

WINDOW_SECONDS = 10
MOST_LATENCIES = 1024

_LEAST_WINDOW_SECONDS = 1.0  # one call in the first millisecond is not a thousand a second


@dataclass(slots=True)
class _Counts:
    """What was counted within one second of the clock."""

    calls: int = 0
    rejected: int = 0
    batches: int = 0
    images: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What was done lately.

    Attributes:
        window: seconds that the figures are of.
        calls, rejected: how many calls were answered and turned away, a second.
        images: how many the engine computed, a second.
        batch_size: how many it computed together, on average; None where it computed none.
        p50, p99: no longer took so much of the calls, seconds; None where there were none.
    """

    window: float
    calls: float
    rejected: float
    images: float
    batch_size: float | None
    p50: float | None
    p99: float | None


class Recent:
    """Tells telemetry what a pipeline tells, and remembers the last WINDOW_SECONDS of it; on the event loop."""

    def __init__(self, telemetry: Telemetry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._born = clock()
        self._seconds: deque[tuple[int, _Counts]] = deque(maxlen=WINDOW_SECONDS)
        self._latencies: deque[tuple[float, float]] = deque(maxlen=MOST_LATENCIES)

    def stage(self, name: str, seconds: float) -> None:
        """A call went through a stage."""
        self._telemetry.stage(name, seconds)

    def batch(self, images: int, seconds: float) -> None:
        """The engine computed a batch."""
        self._telemetry.batch(images, seconds)
        counts = self._now()
        counts.batches += 1
        counts.images += images

    def rejected(self, reason: str) -> None:
        """A call was refused."""
        self._telemetry.rejected(reason)
        self._now().rejected += 1

    def answered(self, seconds: float) -> None:
        """A call was answered."""
        self._now().calls += 1
        self._latencies.append((self._clock(), seconds))

    def figures(self) -> Figures:
        """What was done in the last WINDOW_SECONDS, or since the birth where that is later."""
        now = self._clock()
        # The second that goes on, and whole ones before it.
        first = math.floor(now) - WINDOW_SECONDS + 1
        window = max(now - max(first, self._born), _LEAST_WINDOW_SECONDS)
        counts = [counts for second, counts in self._seconds if second >= first]
        batches, images = sum(each.batches for each in counts), sum(each.images for each in counts)
        latencies = sorted(seconds for when, seconds in self._latencies if when >= first)
        return Figures(
            window=window,
            calls=sum(each.calls for each in counts) / window,
            rejected=sum(each.rejected for each in counts) / window,
            images=images / window,
            batch_size=images / batches if batches else None,
            p50=_quantile(latencies, 0.5),
            p99=_quantile(latencies, 0.99),
        )

    def _now(self) -> _Counts:
        second = math.floor(self._clock())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, _Counts()))
        return self._seconds[-1][1]


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    """The least value that so large a part of the values does not exceed; None where there are none."""
    return ordered[math.ceil(part * len(ordered)) - 1] if ordered else None
