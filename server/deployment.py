"""The deployment: what answers now, lent to each call as a whole, and put in another's place as a whole."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from reidserve.errors import NotServingError
from reidserve.server.queries.pipeline import Pipeline
from reidserve.server.writes.writer import Writer

_QUIET_SECONDS = 0.2
_QUIET_TRIES = 10


@dataclass(frozen=True)
class Served:
    """One model and the galleries of its identity.

    Attributes:
        pipeline: answers queries; it has the model and the galleries.
        writers: of the galleries that may be written, by name.
        reloads: how many times another was put in the place of the first.
    """

    pipeline: Pipeline
    writers: Mapping[str, Writer]
    reloads: int


@dataclass(eq=False)
class _Loan:
    """What is served, and how many calls have it.

    Attributes:
        served: what is lent.
        borrowers: how many calls have it.
        returned: set while nobody has it.
    """

    served: Served
    borrowers: int = 0
    returned: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.returned.set()

    def end_imports(self) -> None:
        """Let imports, which may last for hours, end where they are; their callers go on with what is served then."""
        for writer in self.served.writers.values():
            writer.retire()


class Deployment:
    """Lends every call one model with its galleries, from its start to its end: no answer is of two models."""

    def __init__(self) -> None:
        self._loans: list[_Loan] = []  # the last is lent; those before it have calls that are not done
        self._retiring: set[asyncio.Task[None]] = set()
        self._leaving = self._draining = False
        self._asked = 0

    @property
    def served(self) -> Served | None:
        """What answers now; None until there is something."""
        return self._loans[-1].served if self._loans else None

    @property
    def under_way(self) -> int:
        """How many calls are under way."""
        return sum(loan.borrowers for loan in self._loans)

    @property
    def is_serving(self) -> bool:
        """Whether calls should come here: the model is warm, the galleries are open, and the server is not to end."""
        return bool(self._loans) and not self._leaving

    @property
    def is_stuck(self) -> bool:
        """Whether nothing is embedded: the engine does not come back from a batch, or the machine it is on is away."""
        return self.served is not None and (self.served.pipeline.stuck or self.served.pipeline.embedder.away)

    @property
    def is_cut_off(self) -> bool:
        """Whether none of the galleries answers, as their servers are away."""
        return self.served is not None and self.served.pipeline.cut_off

    @contextmanager
    def lent(self) -> Iterator[Served]:
        """What answers now, for one call: it stays open until the block ends, whatever takes its place.

        Raises:
            NotServingError: there is nothing yet, or the server is ending.
        """
        self._asked += 1
        if self._draining or not self._loans:
            raise NotServingError("the server is loading or draining: try again soon")
        loan = self._loans[-1]
        loan.borrowers += 1
        loan.returned.clear()
        try:
            yield loan.served
        finally:
            loan.borrowers -= 1
            if not loan.borrowers:
                loan.returned.set()

    async def replace(self, served: Served) -> None:
        """Put another in the place of what serves, for each call from now on.

        Calls under way end with what they have, which is then closed, but for galleries that the other has too.
        Imports end behind the piece that they are at.

        Raises:
            NotServingError: the server is ending; what serves stays.
        """
        if self._leaving:
            raise NotServingError("the server is ending: it goes on with what it has")
        before = self._loans[-1:]
        self._loans.append(_Loan(served))
        for loan in before:
            self._retire(loan)

    async def settle(self, seconds: float) -> bool:
        """Whether everything that was replaced is closed, or is within so many seconds."""
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=seconds)
        return not self._retiring

    def leave(self) -> None:
        """Say that calls should go elsewhere; those that come are answered still."""
        self._leaving = True

    async def drain(self, *, grace: float) -> None:
        """Refuse new calls, wait for those under way, at most `grace` seconds, and then for quiet.

        A stopping gRPC server cuts off calls that its transport has taken and asyncio has not yet seen, so callers
        are refused in words until none comes for a moment.
        """
        self._leaving = self._draining = True
        for loan in self._loans:
            loan.end_imports()
        returned = asyncio.gather(*(loan.returned.wait() for loan in self._loans))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(returned, grace)
        for _ in range(_QUIET_TRIES):
            before = self._asked
            await asyncio.sleep(_QUIET_SECONDS)
            if before == self._asked:
                break

    async def close(self) -> None:
        """Close everything; calls that are still under way have been cut off."""
        self._leaving = self._draining = True
        for loan in self._loans[-1:]:
            self._retire(loan)
        for loan in self._loans:
            loan.returned.set()
        await asyncio.gather(*self._retiring)

    def _retire(self, loan: _Loan) -> None:
        """Close something when its last call is done."""
        loan.end_imports()
        retiring = asyncio.create_task(self._close(loan))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def _close(self, loan: _Loan) -> None:
        await loan.returned.wait()
        for writer in loan.served.writers.values():
            await writer.close()
        await loan.served.pipeline.close(galleries=False)
        self._loans.remove(loan)
        kept = {id(gallery) for other in self._loans for gallery in other.served.pipeline.galleries.values()}
        for gallery in loan.served.pipeline.galleries.values():
            if id(gallery) not in kept:
                gallery.close()
