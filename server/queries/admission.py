"""Admission: who is let in, counted in images, and who is told at once to come again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reidserve.errors import DeadlineError, OverloadedError, ServerError
from reidserve.server.queries.telemetry import SILENT, Telemetry

HALF_LIFE_SECONDS = 2.0
"""Of what was measured under load, after so much more time under load half of it is forgotten."""

UNKNOWN_SECONDS = 1.0
SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 60.0
"""What a refused caller is told to wait: at first, at least and at most."""


class Pace:
    """How many images leave in a second of load, measured over the last few of such seconds."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._images = 0.0

    def add(self, seconds: float, images: int) -> None:
        """So many left at the end of so much time under load."""
        kept = 0.5 ** (seconds / HALF_LIFE_SECONDS)
        self._seconds = kept * self._seconds + seconds
        self._images = kept * self._images + images

    def seconds(self, images: int) -> float | None:
        """How long so many take to leave; None while nothing is known."""
        return images * self._seconds / self._images if self._images else None


class Admission:
    """Lets calls in as long as fewer than `most` images are under way and no call would wait for over `seconds`.

    How long a call would wait is what is under way, itself included, at the pace that was measured while at least
    `load` images were under way. Below that load everybody is let in: what the pace says then is no news, and one
    that was slow for a while could not become better.

    Attributes:
        under_way: how many images are let in and not yet out.
    """

    def __init__(
        self,
        *,
        most: int,
        seconds: float,
        load: int,
        telemetry: Telemetry = SILENT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.under_way = 0
        self._most = most
        self._seconds = seconds
        self._load = load
        self._telemetry = telemetry
        self._clock = clock
        self._pace = Pace()
        self._since = clock()

    def check(self, images: int, deadline: float | None = None) -> None:
        """See that a call of so many images would be let in now; `deadline` is on the clock.

        Raises:
            OverloadedError: there are no places for them, or they would wait for too long.
            DeadlineError: they would not be through in time.
        """
        try:
            self._check(images, deadline)
        except ServerError as error:
            self._telemetry.rejected(error.reason)
            raise

    @contextmanager
    def admitted(self, images: int, deadline: float | None = None) -> Iterator[None]:
        """Take places for a call's images while the block lasts.

        Raises:
            OverloadedError, DeadlineError: as `check` says.
        """
        self.check(images, deadline)
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    def _check(self, images: int, deadline: float | None) -> None:
        left = None if deadline is None else deadline - self._clock()
        if left is not None and left <= 0:
            raise DeadlineError(f"the call came {-left:.3f} s after its deadline")
        if self.under_way + images > self._most:
            raise self._overloaded(
                f"{self.under_way} images are under way and {images} came, the most that are taken is {self._most}"
            )
        wait = self._pace.seconds(self.under_way + images)
        if wait is None or self.under_way < self._load:
            return
        if wait > self._seconds:
            raise self._overloaded(
                f"{self.under_way} images are under way, which takes {wait:.1f} s, the longest wait is "
                f"{self._seconds:g} s"
            )
        if left is not None and wait > left:
            raise DeadlineError(
                f"{self.under_way} images are under way, which takes {wait:.1f} s, and the call has {left:.1f} s: "
                "give it more time, or ask less often"
            )

    def _overloaded(self, message: str) -> OverloadedError:
        wait = self._pace.seconds(self.under_way)
        after = min(max(UNKNOWN_SECONDS if wait is None else wait, SHORTEST_SECONDS), LONGEST_SECONDS)
        return OverloadedError(f"{message}: try again in {after:.1f} s", retry_after=after)

    def _count(self, change: int) -> None:
        now = self._clock()
        if self.under_way >= self._load:
            self._pace.add(now - self._since, max(0, -change))
        self._since = now
        self.under_way += change
