"""reid-search: ask a server who is in a photograph."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.asking import NO_ACCESS, Access, asked
from reidserve.commands.console import Json, make_app, print_json, print_lines, run, warn_engine
from reidserve.commands.hits import print_hits
from reidserve.commands.where import Where, read_where
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.client import SearchResult

app = make_app("reid-search")


@app.default
def search(
    query: str,
    *images: str,
    entry: Annotated[bool, Parameter(negative="")] = False,
    server: str = "127.0.0.1:50051",
    gallery: str = "",
    top_k: int = 10,
    where: Where = None,
    rerank: Annotated[bool, Parameter(negative="")] = False,
    min_score: float | None = None,
    only_matches: Annotated[bool, Parameter(negative="")] = False,
    group_by_pid: Annotated[bool, Parameter(negative="")] = False,
    access: Access = NO_ACCESS,
    json: Json = False,
) -> None:
    """Ask a running reid-serve for the gallery's entries most like a photograph.

    Args:
        query: An image file, or with --entry the id of an entry, which is then left out of its own hits.
        images: More images of the same target, as of one track; what they have in common is searched for.
        entry: Take the query for an entry's id.
        server: The server's host:port.
        gallery: The gallery's name, where the server has several.
        top_k: How many hits.
        rerank: Order the 100 best hits again, by the neighbours that they share with the query.
        min_score: Leave out hits of a lower score, -1 to 1.
        only_matches: Leave out hits below the score from which on the server calls two images one identity.
        group_by_pid: Only the best hit of each identity.
    """
    if entry and images:
        raise UsageError("--entry takes one id of an entry")
    said = asked(read_where(where))
    with access.connect(server) as client:
        from reidserve.client import Rerank, SearchOptions

        options: SearchOptions = {
            "gallery": gallery,
            "where": said,
            "rerank": Rerank(shortlist=max(top_k, Rerank().shortlist)) if rerank else None,
            "min_score": min_score,
            "only_matches": only_matches,
            "group_by_pid": group_by_pid,
        }
        if entry:
            result = client.search_entry(query, top_k, **options)
        elif images:
            result = client.search_track([query, *images], top_k, **options)
        else:
            result = client.search(query, top_k, **options)
    warn_engine(result.engine, unverified=result.unverified)
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


def main() -> None:
    """Run the command."""
    run(app)
