"""reid-export MODEL --triton: a model as Triton serves it."""

from pathlib import Path
from typing import TYPE_CHECKING

from reidserve.commands.console import DONE, print_facts, print_json
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.commands.export.deriving import Gate, Wanted


def write(model: Path, repository: Path, wanted: "Wanted", gate: "Gate", *, force: bool, json: bool) -> int:
    """Write the flavour or the plan that is wanted of a model into a repository, and say so."""
    if wanted.makes or gate.verify is not None or gate.unverified:
        raise UsageError("--triton writes what the model has: make and verify that first, without --triton")
    from reidserve.datasets import path_to_text
    from reidserve.export.repository import write_repository

    precision = wanted.precision or "fp32"
    made = write_repository(model, repository, precision=precision, plan=wanted.tensorrt, force=force)
    folder, url = path_to_text(made.folder), f"triton://HOST:8001/{made.folder.name}"
    identity = made.contract.identity
    if json:
        print_json({"wrote": folder, "files": made.files, "identity": identity, "precision": precision, "url": url})
    else:
        serve = f"reid-serve --model {url}{f' --precision {precision}' * (precision != 'fp32')}"
        print_facts({"wrote": folder, "files": ", ".join(made.files), "identity": identity, "then": serve})
    return DONE
