"""How many processors this process may use: what every pool of threads is sized by."""

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def cores(*, groups: Path = _GROUPS, own_group: Path = _OWN_GROUP) -> int:
    """The processors of the process's affinity, or fewer where its control group is granted less time of them.

    A grant of a part of a processor counts as one: what is granted should be used. Of control groups, version 2 is
    read (`cpu.max`), of the own group and all above it.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min([allowed, *(_granted(folder / "cpu.max") for folder in _folders(groups, own_group))])))


def _folders(groups: Path, own_group: Path) -> list[Path]:
    """The own group's folder and those above it, up to the one where groups are mounted."""
    try:
        lines = own_group.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux, or a process that may not look
        return []
    path = next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), None)
    if path is None:
        return []
    folder = groups / path
    return [folder, *(above for above in folder.parents if above.is_relative_to(groups))]


def _granted(file: Path) -> float:
    """Processors' worth of time, such as 1.5; infinity where there is no limit."""
    try:
        quota, period = file.read_text(encoding="utf-8").split()
    except OSError:
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)
