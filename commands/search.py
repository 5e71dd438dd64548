"""reid-search: ask a server who is in a photograph."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.console import Json, make_app, print_json, print_lines, quiet_grpc, run
from reidserve.commands.hits import print_hits
from reidserve.commands.where import Where, read_where
from reidserve.errors import QueryError, UsageError

if TYPE_CHECKING:
    from reidserve.client import Filter, SearchResult
    from reidserve.index import Filter as Condition

app = make_app("reid-search")


@app.default
def search(
    query: str,
    *,
    entry: Annotated[bool, Parameter(negative="")] = False,
    server: str = "127.0.0.1:50051",
    gallery: str = "",
    top_k: int = 10,
    where: Where = None,
    rerank: Annotated[bool, Parameter(negative="")] = False,
    min_score: float | None = None,
    timeout: float = 30.0,
    json: Json = False,
) -> None:
    """Ask a running reid-serve for the gallery's entries most like a photograph.

    Args:
        query: An image file, or with --entry the id of an entry, which is then left out of its own hits.
        entry: Take the query for an entry's id.
        server: The server's host:port.
        gallery: The gallery's name, where the server has several.
        top_k: How many hits.
        rerank: Order the 100 best hits again, by the neighbours that they share with the query.
        min_score: Leave out hits of a lower score, -1 to 1.
        timeout: Seconds to wait for the answer.
    """
    quiet_grpc()
    from reidserve.client import Client, Rerank

    if not 0 < timeout < 1e6:
        raise UsageError(f"--timeout must be above 0 seconds and below a million, got {timeout:g}")
    said = _asked(read_where(where))
    with Client(server, timeout=timeout) as client:
        ask = client.search_entry if entry else client.search
        again = Rerank(shortlist=max(top_k, Rerank().shortlist)) if rerank else None
        result = ask(query, top_k=top_k, gallery=gallery, where=said, rerank=again, min_score=min_score)
    if json:
        print_json(asdict(result))
    else:
        print_hits([asdict(hit) for hit in result.hits])
        if result.match is not None:
            print_lines([_verdict(result)])


def _verdict(result: "SearchResult") -> str:
    """Whether somebody was found, for people."""
    if result.best_score is None:
        return "no match: nothing may be found"
    said = "match: best score {:.6f} reaches {:.6f}" if result.match else "no match: best score {:.6f} is below {:.6f}"
    return said.format(result.best_score, result.threshold)


def _asked(where: "Condition | None") -> "Filter | None":
    """A filter as the client takes it."""
    from reidserve.client import Filter

    if where is None:
        return None
    return Filter(
        ids=where.ids,
        pids=where.pids,
        camids=where.camids,
        not_camids=where.not_camids,
        since=_time(where.since),
        until=_time(where.until),
        attributes=[
            (one.name, one.test, one.values if one.test == "in" else one.values[0]) for one in where.attributes
        ],
    )


def _time(microseconds: int | None) -> datetime | None:
    if microseconds is None:
        return None
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    except OverflowError as error:
        raise QueryError(f"a time must be of the years 1 to 9999, got {microseconds} microseconds from 1970") from error


def main() -> None:
    """Run the command."""
    run(app)
