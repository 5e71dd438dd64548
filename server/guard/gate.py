"""The gate: who a caller is, and whether it may send so much now."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reidserve.errors import RateLimitedError, UnauthenticatedError
from reidserve.server.call import ANYONE, Arrival, Caller
from reidserve.server.guard.bucket import Bucket
from reidserve.server.guard.keys import Key, Keys, Secret, make_secret, read_token
from reidserve.server.guard.keys_file import read_keys
from reidserve.server.guard.watched import LOOK_SECONDS, Watched

HEADER = "authorization"
_BEARER = re.compile(r"(?i:bearer) +(\S+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Ring:
    """Keys, as a call looks them up.

    Attributes:
        secrets: by id: whose each is, and who comes with it.
        keys: by name.
    """

    secrets: Mapping[str, tuple[Secret, Caller]]
    keys: Mapping[str, Key]


class Gate:
    """Lets callers in by their keys; without a file of keys, anyone.

    The file is read again when it changes. It belongs to one event loop: nothing here waits or is locked.

    Raises:
        ConfigError: the file of keys cannot be read, is open to others, or is none of keys.
    """

    def __init__(
        self,
        keys: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._ring = (
            None if keys is None else Watched([keys], lambda: _ring(read_keys(keys)), look_seconds=look_seconds)
        )
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        # Nobody has it: what an unknown id is compared with, so that it takes as long as a known one.
        self._nobody, _ = make_secret()

    def admit(self, arrival: Arrival) -> Caller:
        """Who has arrived.

        Raises:
            UnauthenticatedError: it brings no key, more than one, or none that is known and has not expired.
        """
        if self._ring is None:
            return ANYONE
        ring = self._ring.get()
        presented = arrival.metadata.get(HEADER)
        if presented is None:
            raise UnauthenticatedError(f"this server asks for a key: send {HEADER}: Bearer reid_...")
        found = _BEARER.fullmatch(presented)
        token = None if found is None else read_token(found[1])
        if token is None:
            raise UnauthenticatedError(f"{HEADER} must be one key, as in {HEADER}: Bearer reid_...")
        number, secret = token
        kept, caller = ring.secrets.get(number, (self._nobody, None))
        if not kept.fits(secret) or caller is None:
            raise UnauthenticatedError("the key is not known to this server: it was revoked, or is another server's")
        if not kept.active(datetime.now(UTC)):
            raise UnauthenticatedError(f"a secret of key {caller.name!r} expired at {kept.expires}: use a newer one")
        return caller

    def spend(self, caller: Caller, images: int) -> None:
        """Count images against the rate of a caller's key, all secrets of it together.

        Raises:
            RateLimitedError: it must wait first; nothing was counted.
        """
        key = None if self._ring is None else self._ring.get().keys.get(caller.name)
        if key is None or key.images_per_second is None or not images:
            return
        wait = self._bucket(key, key.images_per_second).take(images, now=self._clock())
        if wait:
            raise RateLimitedError(
                f"key {key.name!r} may send {key.images_per_second:g} images a second: try again in {wait:.3g} s",
                retry_after=wait,
            )

    def _bucket(self, key: Key, rate: float) -> Bucket:
        size = max(rate, 1.0) if key.burst is None else key.burst
        bucket = self._buckets.get(key.name)
        if bucket is None or (bucket.rate, bucket.size) != (rate, size):
            bucket = self._buckets[key.name] = Bucket(rate, size, now=self._clock())
        return bucket


def _ring(keys: Keys) -> _Ring:
    callers = {key.name: key.caller() for key in keys.keys}
    return _Ring(
        {secret.id: (secret, callers[key.name]) for key in keys.keys for secret in key.secrets},
        {key.name: key for key in keys.keys},
    )
