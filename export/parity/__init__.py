"""The rank-parity gate: whether a flavour on an engine still finds what its reference finds."""

from reidserve.export.parity.bounds import DEFAULT_BOUNDS, Bounds
from reidserve.export.parity.gate import Candidate, measure
from reidserve.export.parity.record import Parity, Row
from reidserve.export.parity.table import table_lines

__all__ = [
    "DEFAULT_BOUNDS",
    "Bounds",
    "Candidate",
    "Parity",
    "Row",
    "measure",
    "table_lines",
]
