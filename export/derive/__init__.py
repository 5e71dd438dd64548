"""Derivation: from an artifact its other precisions and plans, each kept only if it ranks as the model does."""

from reidserve.export.derive.calibration import Calibration, check_apart
from reidserve.export.derive.derivation import Derived, derive_flavour, derive_plan, prove_model
from reidserve.export.derive.first import export_proven
from reidserve.export.derive.proof import Verification

__all__ = [
    "Calibration",
    "Derived",
    "Verification",
    "check_apart",
    "derive_flavour",
    "derive_plan",
    "export_proven",
    "prove_model",
]
