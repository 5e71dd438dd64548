"""The states of galleries that may be asked for: the newest of each, those that are kept, and those to come."""

import asyncio
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from reidserve.embed.cores import cores
from reidserve.errors import BackendUnavailableError, GalleryNotFoundError, GenerationGoneError, OverloadedError
from reidserve.index import Gallery, Snapshot
from reidserve.server.queries.pins import Pins
from reidserve.server.queries.question import Listing

WAIT_SECONDS = 10.0
"""The longest that a generation is waited for."""

MOST_WAITING = 256

_ASKING = 8
_POLL_SECONDS = 0.02

_Result = TypeVar("_Result")


class States:
    """The galleries of a pipeline by name, and their states by generation.

    Attributes:
        pins: what was listed or asked for by its number.
        away: the names of galleries whose server did not answer when they were last refreshed.
    """

    def __init__(self, galleries: Mapping[str, Gallery], pins: Pins) -> None:
        self.pins = pins
        self.away: Set[str] = frozenset()
        self._galleries = galleries
        self._threads = {
            True: ThreadPoolExecutor(cores(), thread_name_prefix="states"),
            # These wait for other servers, and nobody else for them.
            False: ThreadPoolExecutor(_ASKING, thread_name_prefix="remote states"),
        }
        self._waiting = 0

    def resolve(self, name: str) -> str:
        """The name of a gallery, which may be left empty where there is one.

        Raises:
            GalleryNotFoundError: there is none of that name.
        """
        if not name and len(self._galleries) == 1:
            (name,) = self._galleries
        if name not in self._galleries:
            raise GalleryNotFoundError(
                f"there is no gallery {name!r} here, there is {', '.join(sorted(self._galleries)) or 'none'}"
            )
        return name

    def at(self, name: str, generation: int | None) -> Snapshot:
        """A gallery's state at a generation, which is kept for a while, or its newest one.

        Raises:
            GenerationGoneError: it is not at that generation, and no such state is kept.
        """
        newest = self._galleries[name].snapshot
        return newest if generation is None else self.pins.at(name, generation, newest=newest)

    async def reach(self, name: str, generation: int, *, until: float) -> Snapshot:
        """The first state at a generation or behind it; `until` is on time.monotonic's clock.

        Raises:
            GenerationGoneError: there is none by then.
            OverloadedError: MOST_WAITING wait already.
        """
        gallery = self._galleries[name]
        if gallery.snapshot.generation >= generation:
            return gallery.snapshot
        if self._waiting >= MOST_WAITING:
            raise OverloadedError(f"{self._waiting} calls wait for a generation, the most that may: try again soon")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(until):
                while True:
                    await self._run(gallery.snapshot, gallery.refresh)
                    if gallery.snapshot.generation >= generation:
                        return gallery.snapshot
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise GenerationGoneError(
                f"gallery {name!r} is at generation {gallery.snapshot.generation}, and {generation} was waited for in "
                "vain: was it written to this gallery?"
            ) from error
        finally:
            self._waiting -= 1

    async def entries(self, name: str, generation: int | None, *, after: int, most: int) -> Listing:
        """At most so many entries of a gallery behind a row; the state is kept for a while, to be asked for more.

        Raises:
            GalleryNotFoundError, GenerationGoneError: there is no such gallery, or it is not at that generation.
        """
        name = self.resolve(name)
        snapshot = self.at(name, generation)
        found = await self._run(snapshot, lambda: list(islice(snapshot.listed(after=after), most + 1)))
        self.pins.keep(name, snapshot)
        return Listing(found[:most], snapshot.generation, more=len(found) > most)

    async def ask(self, snapshot: Snapshot, work: Callable[[], _Result]) -> _Result:
        """What `work` reads of a state: at once where that is in memory, on a thread where it asks another process."""
        return work() if snapshot.in_memory else await self._run(snapshot, work)

    async def refresh(self) -> None:
        """Let go of states that nobody asks for, and let every gallery catch up with what others have written.

        Raises:
            GalleryError: a gallery is damaged; its last good state goes on being served, and the others are fresh.
            BackendUnavailableError: the server of one is away; the others are fresh.
        """
        self.pins.drop_old()
        results = await asyncio.gather(
            *(self._run(gallery.snapshot, gallery.refresh) for gallery in self._galleries.values()),
            return_exceptions=True,
        )
        gone = (isinstance(result, BackendUnavailableError) for result in results)
        self.away = {name for name, is_gone in zip(self._galleries, gone, strict=True) if is_gone}
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def close(self) -> None:
        """Stop the threads."""
        for threads in self._threads.values():
            threads.shutdown()

    async def _run(self, snapshot: Snapshot, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads[snapshot.in_memory], work)
