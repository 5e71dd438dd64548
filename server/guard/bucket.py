"""A bucket of tokens: how much of something may be had, at a rate in the long run and in bursts."""

_ROUNDING = 1e-6  # whoever waits as long as it was told is not told to wait again


class Bucket:
    """Tokens that come at a rate until the bucket is full.

    Whoever wants more than a full bucket holds waits until it is full, and overdraws it: a large call is possible, and
    paid for by waiting longer afterwards, so that the rate holds in the long run.

    Attributes:
        rate: tokens that come in a second.
        size: tokens that a full bucket holds.
    """

    def __init__(self, rate: float, size: float, *, now: float) -> None:
        self.rate = rate
        self.size = size
        self._tokens = size
        self._then = now

    def take(self, tokens: float, *, now: float) -> float:
        """Take tokens, or none of them: the seconds after which they may be had, 0 where they were taken."""
        self._tokens = min(self.size, self._tokens + (now - self._then) * self.rate)
        self._then = now
        missing = min(tokens, self.size) - self._tokens
        if missing > _ROUNDING:
            return missing / self.rate
        self._tokens -= tokens
        return 0.0
