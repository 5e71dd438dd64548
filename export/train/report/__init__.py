"""What training shows to people: curves, pictures, and pages that need nothing else. Machines read log.jsonl."""

from reidserve.export.train.report.curves import draw_curves
from reidserve.export.train.report.run_page import RunReport
from reidserve.export.train.report.study_page import Row, Study, write_study

__all__ = ["Row", "RunReport", "Study", "draw_curves", "write_study"]
