"""Pins: states of galleries that somebody listed or asked for by number, kept so that many calls see one state."""

import time
from collections.abc import Callable

from reidserve.errors import GenerationGoneError
from reidserve.index import Snapshot

KEPT_SECONDS = 60.0
MOST_KEPT = 4


class Pins:
    """At most MOST_KEPT snapshots, each until it was not asked for by its generation for KEPT_SECONDS.

    A pinned snapshot shares its blocks with the newest one as far as nothing changed: it takes next to nothing where
    entries were added, and the memory of the whole gallery again where all of it was replaced.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, int], tuple[Snapshot, float]] = {}

    def at(self, name: str, generation: int, *, newest: Snapshot) -> Snapshot:
        """The state of a gallery at exactly this generation, which is kept from now on.

        Raises:
            GenerationGoneError: it is neither the newest nor one that is kept.
        """
        self.drop_old()
        # What is not in memory has no state but its newest.
        kept, _ = self._kept.get((name, generation), (newest, 0.0)) if newest.in_memory else (newest, 0.0)
        if kept.generation != generation:
            hint = (
                "what has been written is served within about a second, try again"
                if generation > newest.generation
                else f"a state is kept for {KEPT_SECONDS:.0f} s after it was asked for by its number: begin again with "
                "the newest"
            )
            raise GenerationGoneError(
                f"generation {generation} of gallery {name!r} is not served, it is at generation {newest.generation}: "
                f"{hint}"
            )
        self.keep(name, kept)
        return kept

    def keep(self, name: str, snapshot: Snapshot) -> None:
        """Keep a state that will be asked for; what was not asked for longest makes room."""
        self._kept.pop((name, snapshot.generation), None)
        self._kept[name, snapshot.generation] = snapshot, self._clock()
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def drop_old(self) -> None:
        """Let go of what nobody asked for in time."""
        limit = self._clock() - KEPT_SECONDS
        for key in [key for key, (_, asked) in self._kept.items() if asked < limit]:
            del self._kept[key]
