"""The rankers of a pipeline: threads that rank, so that plain searches wait for no long ones and for no slow server."""

import asyncio

from reidserve.index import Ranking
from reidserve.server.queries.batcher import Batcher
from reidserve.server.queries.ranker import Found, Query, rank_together, rank_whole_together

MAX_RANKED_TOGETHER = 32
MAX_RERANKED_TOGETHER = 4
MAX_WHOLE = 8
"""How many whole rankings may be under way: each takes 12 bytes an entry until its reader has it, and as much again,
twice, while up to so many are computed."""

_ASKING = 4
"""How many threads wait for a gallery's server, which ranks for each of them."""


class Rankers:
    """Ranks what is asked of galleries in this process's memory, or of those that another server holds: not of both."""

    def __init__(self, *, in_memory: bool) -> None:
        workers = 1 if in_memory else _ASKING
        where = "" if in_memory else "remote "
        self._plain: Batcher[Query, Found] = Batcher(
            rank_together, most=MAX_RANKED_TOGETHER, name=f"{where}ranker", workers=workers
        )
        # Re-ranking, grouping and whole rankings may take long: plain searches do not wait for them.
        self._slow: Batcher[Query, Found] = Batcher(
            rank_together, most=MAX_RERANKED_TOGETHER, name=f"slow {where}ranker", workers=workers
        )
        self._whole: Batcher[Query, Ranking] = Batcher(rank_whole_together, most=MAX_WHOLE, name=f"{where}whole")

    def rank(self, query: Query) -> "asyncio.Future[Found]":
        """What a query finds."""
        slow = query.shortlist is not None or query.group_by_pid
        return (self._slow if slow else self._plain).submit(query)

    def rank_whole(self, query: Query) -> "asyncio.Future[Ranking]":
        """All that a query may find, ranked."""
        return self._whole.submit(query)

    async def close(self) -> None:
        """Stop the threads; nobody may be waiting any more."""
        for ranker in (self._plain, self._slow, self._whole):
            await ranker.close()
