"""Hits as every command prints them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from reidserve.commands.console import print_lines

if TYPE_CHECKING:
    from reidserve.index import Hit

HitFacts = Mapping[str, object]
"""What one hit says, by name, as the client's Hit has it."""


def hit_facts(hit: "Hit") -> HitFacts:
    """A hit of the index, as the client would say it."""
    entry = hit.entry
    return {
        "entry_id": entry.id,
        "pid": entry.pid,
        "camid": entry.camid,
        "score": hit.score,
        "rank": hit.rank,
        "timestamp": _time(entry.timestamp),
        "attributes": dict(sorted(entry.attributes.items())),
        "reranked_distance": hit.reranked_distance,
    }


def print_hits(hits: Sequence[HitFacts]) -> None:
    """Print hits for people, best first, one a line."""
    distance = any(hit["reranked_distance"] is not None for hit in hits) * ("reranked_distance",)
    columns = ("rank", *distance, "score", "pid", "camid", "entry_id")
    rows = [columns, *(tuple(_text(hit[column]) for column in columns) for hit in hits)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns) - 1)]
    print_lines(
        [
            "  ".join([*(f"{cell:>{width}}" for cell, width in zip(row[:-1], widths, strict=True)), row[-1]])
            for row in rows
        ]
    )


def _time(microseconds: int | None) -> datetime | None:
    try:
        return None if microseconds is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    except OverflowError:  # not of the years 1 to 9999, which alone travel
        return None


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6f}" if isinstance(value, float) else str(value)
