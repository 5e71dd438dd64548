"""reid-eval compare: two reports, query by query."""

from dataclasses import asdict
from pathlib import Path

from reidserve.commands.console import Json, print_json, print_lines
from reidserve.errors import UsageError


def compare(before: Path, after: Path, /, *, samples: int = 10_000, seed: int = 0, json: Json = False) -> None:
    """Say whether a difference between two reports is noise: paired bootstrap intervals over identities.

    Stages of equal name are compared, on the queries that both reports scored.

    Args:
        before: The report.json of one run, or its folder.
        after: That of another.
        samples: How often identities are drawn.
        seed: Of what is drawn.
    """
    from reidserve.evaluate.comparison import compare as compare_documents
    from reidserve.evaluate.report import read_document

    if not 100 <= samples <= 1_000_000:
        raise UsageError(f"--samples must be 100 to 1,000,000, got {samples}")
    found = compare_documents(read_document(before), read_document(after), samples=samples, seed=seed)
    if json:
        print_json({"samples": samples, "seed": seed, "comparisons": [asdict(one) for one in found]})
        return
    for one in found:
        print_lines([f"{one.before} -> {one.after}", *(f"  {line}" for line in one.lines())])
