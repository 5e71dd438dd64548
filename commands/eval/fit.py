"""Whether what was asked for goes together, seen before anything is embedded."""

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from reidserve.commands.eval.options import Ruled, Scored, Told, Varied, Written
from reidserve.errors import QueryError, UsageError

if TYPE_CHECKING:
    from reidserve.evaluate.protocols import Protocol


def check_fit(protocol: "Protocol", ruled: Ruled, scored: Scored, varied: Varied, written: Written) -> None:
    """See that what is scored, by which protocol, and what is made of it go together.

    Raises:
        UsageError: they do not.
    """
    from reidserve.evaluate.protocols import TRIALS

    if protocol.name != "market1501":
        if scored.deployed:
            raise UsageError(f"a gallery is ranked as it stands, {protocol.name} draws or groups it: leave it out")
        if varied.rerank or varied.expand:
            raise UsageError(f"--rerank and --expand are of market1501, the protocol is {protocol.name}")
    if scored.deployed and (varied.flip or ruled.multi_query):
        raise UsageError("a gallery and a server answer one image, as it is: leave out --flip and --multi-query")
    if ruled.trials is not None and protocol.name not in TRIALS:
        raise UsageError(f"--trials is of {' and '.join(TRIALS)}, the protocol is {protocol.name}")
    _check_variants(varied)
    if written.threshold is not None:
        _check_threshold(protocol, ruled, scored, varied)
    if written.picture is not None:
        if scored.checkpoint is None and scored.model is None:
            raise UsageError("--picture shows rankings of images embedded here: score a --checkpoint or a --model")
        if protocol.name != "market1501":
            raise UsageError(f"--picture shows the gallery ranked whole, {protocol.name} draws or groups it")


def check_told(told: Told, scored: Scored, index: str, precision: str) -> None:
    """See that nothing is told of what is not scored.

    Raises:
        UsageError: it is.
    """
    if scored.checkpoint is None and (names := [name for name, value in asdict(told).items() if value is not None]):
        said = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UsageError(f"{said} would tell of a --checkpoint, and none is scored")
    if scored.gallery is None and index != "auto":
        raise UsageError("--index is how a --gallery is searched, and none is scored")
    if scored.model is None and precision != "fp32":
        raise UsageError("--precision is the flavour of a --model, and none is scored")


def check_files(written: Written, data: Path | None) -> None:
    """See that no file is written over another one, or over what is read.

    Raises:
        UsageError: one would be.
    """
    seen = {} if data is None else {data.resolve(): "the dataset"}
    for name in ("report", "per_query", "picture", "threshold"):
        path: Path | None = getattr(written, name)
        if path is None:
            continue
        option = f"--{name.replace('_', '-')}"
        if (other := seen.setdefault(path.resolve(), option)) != option:
            raise UsageError(f"{option} would be written over {other}: {str(path)!r}")


def _check_variants(varied: Varied) -> None:
    from reidserve.index.rerank import Reranking

    if varied.rerank:
        try:
            Reranking(k1=varied.k1, k2=varied.k2, weight=varied.weight)
        except QueryError as error:
            raise UsageError(str(error)) from error
    if varied.expand and not (varied.alpha >= 0 and isfinite(varied.alpha)):
        raise UsageError(f"--alpha must be 0 or more, got {varied.alpha:g}")


def _check_threshold(protocol: "Protocol", ruled: Ruled, scored: Scored, varied: Varied) -> None:
    if scored.model is None and scored.server is None:
        raise UsageError("a threshold is of an artifact's scores: score a --model, a --gallery or a --server")
    if varied.flip or ruled.multi_query or protocol.name == "image-to-track":
        raise UsageError(
            "--threshold is of one image against one image, as a server compares them: leave out --flip, --multi-query "
            "and tracks"
        )
