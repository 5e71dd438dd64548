"""Hits as every command prints them."""

from collections.abc import Mapping, Sequence

from reidserve.commands.console import print_lines

HitFacts = Mapping[str, object]
"""rank, score, entry_id, pid and camid of one hit."""


def print_hits(hits: Sequence[HitFacts]) -> None:
    """Print hits for people, best first, one a line."""
    columns = ("rank", "score", "pid", "camid", "entry_id")
    rows = [columns, *(tuple(_text(hit[column]) for column in columns) for hit in hits)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns) - 1)]
    print_lines(
        [
            "  ".join([*(f"{cell:>{width}}" for cell, width in zip(row[:-1], widths, strict=True)), row[-1]])
            for row in rows
        ]
    )


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6f}" if isinstance(value, float) else str(value)
