"""Studies: a control and variants that differ in one thing, beside what others published of the same question."""

from reidserve.export.study.page import write_page
from reidserve.export.study.published import PUBLISHED, SOURCES
from reidserve.export.study.results import Row, read_rows, write_rows
from reidserve.export.study.run import Listener, run_study
from reidserve.export.study.sources import Sources, find_sources
from reidserve.export.study.studies import STUDIES, find_study
from reidserve.export.study.study import Line, Study, Variant
from reidserve.export.study.table import write_table

__all__ = [
    "PUBLISHED",
    "SOURCES",
    "STUDIES",
    "Line",
    "Listener",
    "Row",
    "Sources",
    "Study",
    "Variant",
    "find_sources",
    "find_study",
    "read_rows",
    "run_study",
    "write_page",
    "write_rows",
    "write_table",
]
