"""The watched session: one on another machine, which may be away, and is used again once it is back and as it was."""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reidserve.embed.images import Batch
from reidserve.embed.session import Session
from reidserve.errors import ArtifactError, BackendUnavailableError

WATCH_SECONDS = 1.0
"""Between two looks at whether it is there."""

_logger = logging.getLogger(__name__)


class Absentee(Session, Protocol):
    """A session that may be away."""

    def check_ready(self) -> None:
        """See that it would compute.

        Raises:
            BackendUnavailableError: it is away, or late.
        """
        ...


class WatchedSession:
    """A session that `start` gives whenever what computes it is there and holds its canaries.

    A thread looks once a second whether it is ready. From the first failure on, calls fail at once, and what takes its
    place is started, so checked, before it is used: whatever comes back at the same address may be another model.

    Attributes:
        engine: the session's.
        max_batch: the session's.
        lanes: the session's.

    Raises:
        BackendUnavailableError: it is away.
        ArtifactError: it computes something else.
    """

    def __init__(self, start: Callable[[], Absentee]) -> None:
        self._watched = _Watched(start)
        self.engine = self._watched.session.engine
        self.max_batch = self._watched.session.max_batch
        self.lanes = self._watched.session.lanes
        threading.Thread(target=self._watched.watch, name="model watch", daemon=True).start()
        # The thread knows nothing of this object, so that it can go.
        weakref.finalize(self, self._watched.end)

    @property
    def away(self) -> bool:
        """Whether calls fail, since it is not there or is not what it was."""
        return self._watched.away

    def __call__(self, batch: Batch, /) -> NDArray[np.float32]:
        """Compute a Batch (N, height, width, 3) to float32 (N, dim).

        Raises:
            BackendUnavailableError: it is away, or late.
            EmbeddingError: it refuses the batch, or answers wrongly.
        """
        watched, session = self._watched, self._watched.session
        if not watched.away:
            try:
                return session(batch)
            except BackendUnavailableError as error:
                watched.lose(session, error)
        # Who asks here need not learn where it is.
        raise BackendUnavailableError(
            f"the server that computes the model is away: try again in {WATCH_SECONDS:g} s", retry_after=WATCH_SECONDS
        )


class _Watched:
    """What the callers and the thread share.

    Attributes:
        session: the last one that was started.
        away: whether it is of no use.
    """

    def __init__(self, start: Callable[[], Absentee]) -> None:
        self._start = start
        self.session = start()
        self.away = False
        self._told = ""
        self._ended = False
        self._look = threading.Event()

    def watch(self) -> None:
        """Look until the end."""
        while not self._ended:
            self._look.wait(WATCH_SECONDS)
            self._look.clear()
            session = self.session
            try:
                if self.away:
                    self._restart()
                else:
                    session.check_ready()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is tried again
                self.lose(session, error, now=False)

    def lose(self, session: Absentee, error: Exception, *, now: bool = True) -> None:
        """Take a session for away, unless another has taken its place; look again at once, or in a while."""
        if session is not self.session or self._ended:
            return
        self.away = True
        if str(error) != self._told:
            self._told = str(error)
            _logger.warning("%s is not used: %s", session.engine, error)
        if now:
            self._look.set()

    def end(self) -> None:
        """Stop looking."""
        self._ended = True
        self._look.set()

    def _restart(self) -> None:
        before, after = self.session, self._start()
        if (after.engine, after.max_batch) != (before.engine, before.max_batch):
            raise ArtifactError(
                f"it is {after.engine} in batches of {after.max_batch} now, and was {before.engine} in batches of "
                f"{before.max_batch}: load the model again"
            )
        self.session, self.away, self._told = after, False, ""
        _logger.warning("%s is back", after.engine)
