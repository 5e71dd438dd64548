"""Retries: which failures are asked again, when, and how often a client may at all."""

import math
import random
import threading
import time

from reidserve.errors import BusyError, RequestError, TimedOutError, UnavailableError

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds before the first and before any retry, each a fifth more or less; a pause is twice the one before it."""

_TOKENS, _TOKENS_BACK = 20.0, 0.1


class Budget:
    """How often a client may ask again, all its calls together: the token bucket of gRPC's proposal A6.

    A failure takes one of twenty tokens, an answer gives back a tenth of one, and with half of them gone nothing is
    asked again: callers of a server that is down, or has too much to do, do not add to it. Safe from any thread.
    """

    def __init__(self) -> None:
        self._tokens = _TOKENS
        self._lock = threading.Lock()

    def failed(self) -> bool:
        """Count a failure; whether it may be asked again."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > _TOKENS / 2

    def answered(self) -> None:
        """Count an answer."""
        with self._lock:
            self._tokens = min(_TOKENS, self._tokens + _TOKENS_BACK)


class Attempts:
    """The attempts of one call, all within one deadline."""

    def __init__(self, timeout: float, *, retries: int, budget: Budget) -> None:
        self._deadline = time.monotonic() + timeout
        self._retries = retries
        self._budget = budget
        self._pause = FIRST_PAUSE

    def left(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(0.0, self._deadline - time.monotonic())

    def answered(self) -> None:
        """Count an answer."""
        self._budget.answered()

    def pause(self, failure: RequestError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            RequestError: the failure itself, where asking again does not help, is not allowed, or would be too late.
        """
        if not isinstance(failure, UnavailableError | BusyError):
            raise failure
        allowed = self._budget.failed()
        self._retries -= 1
        pause, self._pause = backoff(self._pause, failure), self._pause * 2
        if not allowed or self._retries < 0 or pause >= self.left():
            raise failure
        return pause


class Resuming:
    """The attempts of an import, which goes on as long as something of it is acknowledged within `timeout` seconds.

    Before the first acknowledgement it has `retries`, as other calls: nobody waits for minutes to hear that there is no
    server. It takes nothing from the budget: one stream that comes back every few seconds is no load.
    """

    def __init__(self, timeout: float, *, retries: int) -> None:
        self._timeout = timeout
        self._retries: float = retries
        self._deadline, self._pause = self._anew()

    def acknowledged(self) -> None:
        """Count an acknowledgement."""
        self._retries = math.inf
        self._deadline, self._pause = self._anew()

    def pause(self, failure: RequestError) -> float:
        """Seconds to wait before the stream is begun again.

        Raises:
            RequestError: the failure itself, where beginning again does not help or nothing was acknowledged for long.
        """
        pause, self._pause = backoff(self._pause, failure), self._pause * 2
        self._retries -= 1
        again = isinstance(failure, UnavailableError | BusyError | TimedOutError)
        if not again or self._retries < 0 or time.monotonic() + pause >= self._deadline:
            raise failure
        return pause

    def _anew(self) -> tuple[float, float]:
        return time.monotonic() + self._timeout, FIRST_PAUSE


def backoff(pause: float, failure: RequestError) -> float:
    """Seconds to wait: what is due, a fifth more or less lest all callers come at once, and the server's own hint."""
    jittered = min(pause, LONGEST_PAUSE) * random.uniform(0.8, 1.2)
    hint = failure.retry_after
    return jittered if hint is None else hint + jittered
