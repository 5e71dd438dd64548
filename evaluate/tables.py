"""A table of how every query fared, as CSV or Parquet. Nothing else in evaluate/ imports PyArrow."""

import csv
from pathlib import Path

import numpy as np

from reidserve.datasets import path_to_text
from reidserve.errors import EvaluationError
from reidserve.evaluate.evaluation import Evaluation
from reidserve.evaluate.metrics import average_precisions, first_ranks, inverse_negative_penalties
from reidserve.evaluate.outcomes import NOBODY
from reidserve.index.storage.folders import new_file

Column = list[int] | list[float | None] | list[int | None] | list[str | None] | list[bool]


def write_per_query(evaluation: Evaluation, path: Path) -> None:
    """Write a row per query, to a .csv or a .parquet; the file is whole or, if it fails, what it was.

    What is not known, or cannot be known of rankings that were cut short, is empty.

    Raises:
        EvaluationError: another suffix.
        OSError: it cannot be written.
    """
    writers = {".csv": _write_csv, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise EvaluationError(f"a table is written as .csv or .parquet, got {path_to_text(path)}")
    with new_file(path) as partial:
        writers[path.suffix](tabulate(evaluation), partial)


def tabulate(evaluation: Evaluation) -> dict[str, Column]:
    """How every query fared, by column: trials count from 1, ranks from 1; scores are cosine where ranked by it."""
    outcomes, query, gallery = evaluation.outcomes, evaluation.query, evaluation.gallery
    count, whole = len(outcomes), evaluation.whole
    found, wrong = outcomes.found, outcomes.wrong.tolist()
    right = found + outcomes.missing
    best = np.full(count, -np.inf)
    best[found > 0] = outcomes.scores[outcomes.starts[:-1][found > 0]]

    def shares(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float | None]:
        known = (right > 0) & whole
        return [value if is_known else None for value, is_known in zip(values.tolist(), known.tolist(), strict=True)]

    return {
        "trial": [1 + place * evaluation.trials // count for place in range(count)],
        "query": list(query.sources),
        "pid": list(query.pids),
        "camid": list(query.camids),
        "matchable": (right > 0).tolist(),
        "right_entries": right.tolist(),
        "first_rank": [int(rank) if rank < np.inf else None for rank in first_ranks(outcomes).tolist()],
        "average_precision": shares(average_precisions(outcomes, "hits")),
        "average_precision_trapezoid": shares(average_precisions(outcomes, "trapezoid")),
        "average_precision_step": shares(average_precisions(outcomes, "step")),
        "inverse_negative_penalty": shares(inverse_negative_penalties(outcomes)),
        "best_right_score": _finite(best.tolist()),
        "best_wrong_score": _finite(outcomes.wrong_scores.tolist()),
        "best_wrong": [None if place == NOBODY else gallery.sources[place] for place in wrong],
        "best_wrong_pid": [None if place == NOBODY else gallery.pids[place] for place in wrong],
    }


def _finite(values: list[float]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values]


def _write_csv(columns: dict[str, Column], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_parquet(columns: dict[str, Column], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text, whole, share = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds = {"query": text, "pid": text, "camid": text, "best_wrong": text, "best_wrong_pid": text}
    kinds |= {"trial": whole, "right_entries": whole, "first_rank": whole, "matchable": pyarrow.bool_()}
    # Named, since a column of nothing but unknowns has no kind of its own.
    schema = pyarrow.schema([(name, kinds.get(name, share)) for name in columns])
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path)
