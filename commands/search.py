"""reid-search: ask a server who is in a photograph."""

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from reidserve.commands.console import Json, make_app, print_json, quiet_grpc, run
from reidserve.commands.hits import print_hits
from reidserve.errors import UsageError

app = make_app("reid-search")


@app.default
def search(
    query: str,
    *,
    entry: Annotated[bool, Parameter(negative="")] = False,
    server: str = "127.0.0.1:50051",
    gallery: str = "",
    top_k: int = 10,
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
        timeout: Seconds to wait for the answer.
    """
    quiet_grpc()
    from reidserve.client import Client

    if not 0 < timeout < 1e6:
        raise UsageError(f"--timeout must be above 0 seconds and below a million, got {timeout:g}")
    with Client(server, timeout=timeout) as client:
        ask = client.search_entry if entry else client.search
        result = ask(query, top_k=top_k, gallery=gallery)
    if json:
        print_json(asdict(result))
    else:
        print_hits([asdict(hit) for hit in result.hits])


def main() -> None:
    """Run the command."""
    run(app)
