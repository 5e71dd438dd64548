"""reid-export inspect: what is in a checkpoint, and what would be exported."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from reidserve.commands.console import DONE, FAILED, Json, print_facts, print_json, print_lines, write_bytes

if TYPE_CHECKING:
    from reidserve.export.checkpoints import Held, Inspection

_STAGE = re.compile(r"(.*?[0-9])\.|(.*)\.")
"""A name up to its first part that ends in a number, such as base.layer1, or else without its last part."""
_SHOWN = 5
_WIDEST = 300


def inspect(file: Path, /, *, json: Json = False) -> int:
    """Show what is in a checkpoint: whose it is, its network and tensors, what it does not tell, what would come out.

    Nothing is written, and code in the file does not run. The exit code is 0 if the file can be exported, once what
    is asked for is said, and 1 if it is refused, whatever is said; what could be read is shown all the same.

    Args:
        file: The checkpoint; write ./inspect for one of that name.
    """
    from reidserve.export.checkpoints import inspect_checkpoint

    found = inspect_checkpoint(file)
    if json:
        print_json(_document(found))
    else:
        _show(found)
    return DONE if found.refusal is None else FAILED


def _document(found: "Inspection") -> dict[str, Any]:
    stages = _stages(found.tensors)
    return {
        **_file(found),
        "dialects": found.dialects,
        "architecture": _architecture(found),
        "metadata": found.metadata,
        "tensors": {
            "count": len(found.tensors),
            "bytes": sum(tensor.size for tensor in found.tensors),
            "dtypes": Counter(tensor.dtype for tensor in found.tensors),
            "stages": {stage: {"tensors": len(held), "numbers": _numbers(held)} for stage, held in stages.items()},
            "all": [{"name": held.name, "shape": held.shape, "dtype": held.dtype} for held in found.tensors],
        },
        "dead": found.dead,
        "absent": found.absent,
        "asked": _asked(found),
        "exported": _exported(found),
        "refusal": found.refusal,
    }


def _show(found: "Inspection") -> None:
    dtypes = Counter(tensor.dtype for tensor in found.tensors)
    print_facts(
        {
            **_file(found),
            "tensors": f"{len(found.tensors)} of {write_bytes(sum(tensor.size for tensor in found.tensors))}: "
            + ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()),
            "dialect": " or ".join(found.dialects) or "none that is known",
        }
    )
    sections: dict[str, Mapping[str, Any]] = {
        "architecture": _architecture(found) or {},
        "tensors": {stage: _fold(stage, held) for stage, held in _stages(found.tensors).items()},
        "metadata": found.metadata,
        "not read": _by_reason(found.dead),
        "not in the file": _by_reason(found.absent),
        "must be said": _asked(found),
        "would be exported": _exported(found) or {},
    }
    for title, facts in sections.items():
        if facts:
            print_lines(["", f"{title}:"])
            print_facts({f"  {name}": _say(value) for name, value in facts.items()})
    if found.refusal is not None:
        print_lines(["", f"refused: {found.refusal}"])


def _file(found: "Inspection") -> dict[str, str]:
    from reidserve.datasets import path_to_text

    return {"file": path_to_text(found.path), "sha256": found.sha256}


def _say(value: object) -> str:
    if value is None:
        return "not told"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return shorten(text, _WIDEST, placeholder=" ...")


def _architecture(found: "Inspection") -> dict[str, Any] | None:
    """Every choice of the network, None for one that the file does not tell; no embedding layer has 0 outputs."""
    if found.architecture is None:
        return None
    choices = asdict(found.architecture)
    choices = {name: 0 if value is None else value for name, value in choices.items()}
    return {name: None if name in found.questions else value for name, value in choices.items()}


def _asked(found: "Inspection") -> dict[str, str]:
    """What must be said before the file can be exported: candidates by flag."""
    if found.refusal is not None or found.feed is None:
        return {}
    flags = {name: f"--{name.replace('_', '-')}" for name in found.questions}
    asked = {flags[name]: candidates for name, candidates in found.questions.items()}
    if found.answered:
        instead = ", ".join(flags[name] for name in found.answered)
        asked["--dialect"] = f"{' or '.join(found.dialects)}, in place of {instead}, for what is usual in that project"
    if found.feed.height is None or found.feed.width is None:
        usual = ", ".join(f"{size} in {name}" for name, size in found.sizes.items())
        asked["--size"] = f"HEIGHTxWIDTH that it was trained on, usually {usual}"
    return asked


def _exported(found: "Inspection") -> dict[str, Any] | None:
    if found.refusal is not None or found.architecture is None or found.feed is None:
        return None
    feed = found.feed
    return {
        "dim": found.architecture.feature_dim,
        "feature": found.architecture.feature,
        "height": feed.height,
        "width": feed.width,
        "resize": None if "resize" in found.questions else feed.resize,
        "colour": feed.colour,
        "mean": feed.mean,
        "std": feed.std,
        "feeding told by": "the file" if found.feed_told else f"nothing: as is usual in {found.dialects[0]}",
        "embedding": "of unit length: L2 is in the graph",
    }


def _stages(tensors: "Iterable[Held]") -> "dict[str, list[Held]]":
    """The tensors by the stage of the network that their names say."""
    stages: dict[str, list[Held]] = {}
    for tensor in tensors:
        match = _STAGE.match(tensor.name)
        stages.setdefault((match[1] or match[2]) if match else tensor.name, []).append(tensor)
    return stages


def _numbers(tensors: "Iterable[Held]") -> int:
    return sum(tensor.numbers for tensor in tensors)


def _fold(stage: str, tensors: "list[Held]") -> str:
    """A stage in one line: its tensors with their shapes, or of many the first."""
    names = [f"{tensor.name.removeprefix(stage).lstrip('.')} {_shape(tensor.shape)}".strip() for tensor in tensors]
    return f"{_numbers(tensors):,} numbers: {_some(names)}"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _by_reason(reasons: Mapping[str, str]) -> dict[str, str]:
    """What is dead or absent, with the reason; names of one reason are folded."""
    folded: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        folded.setdefault(reason, []).append(name)
    return {_some(names): reason for reason, names in folded.items()}


def _some(names: list[str]) -> str:
    shown = names if len(names) <= _SHOWN else names[:2]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
