import os
from pathlib import Path

import pytest

from reidserve.embed.cores import cores


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    (tmp_path / "groups" / "machine" / "server").mkdir(parents=True)
    return tmp_path / "groups"


@pytest.fixture
def own_group(tmp_path: Path) -> Path:
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/machine/server\n")
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8),
        ({"machine/server": "max 100000"}, 8),
        ({"machine/server": "300000 100000"}, 3),
        ({"machine/server": "150000 100000"}, 2),
        ({"machine/server": "10000 100000"}, 1),
        ({"machine/server": "1600000 100000"}, 8),
        ({"machine/server": "600000 100000", "machine": "200000 50000"}, 4),
        ({"": "100000 100000"}, 1),
    ],
)
def test_cores_are_those_of_the_affinity_or_what_any_control_group_grants(
    groups: Path, own_group: Path, limits: dict[str, str], expected: int
):
    for folder, text in limits.items():
        (groups / folder / "cpu.max").write_text(text + "\n")
    assert cores(groups=groups, own_group=own_group) == expected


def test_where_there_are_no_control_groups_the_affinity_counts(tmp_path: Path):
    assert cores(groups=tmp_path, own_group=tmp_path / "none") == 8
    (tmp_path / "old").write_text("3:cpu,cpuacct:/docker/1\n")
    assert cores(groups=tmp_path, own_group=tmp_path / "old") == 8
