"""Reports: what was measured, for machines as JSON (`document`) and for people as a page (`page`, which draws).

`page` is imported by its own name, so that reports are read and compared where nothing can draw.
"""

from reidserve.evaluate.report.document import Document, Record, Subject, read_document, record
from reidserve.evaluate.report.losses import Loss, losses, summarise_losses

__all__ = [
    "Document",
    "Loss",
    "Record",
    "Subject",
    "losses",
    "read_document",
    "record",
    "summarise_losses",
]
