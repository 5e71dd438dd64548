"""The guard of the released protocol: what callers have been built against stays."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import BIN

ROOT = Path(__file__).parents[1]


def breaking(proto: Path) -> subprocess.CompletedProcess[str]:
    """What scripts/test runs."""
    released = ROOT / "proto" / "reid.v1.binpb"
    command = [BIN / "buf", "breaking", proto, "--against", released]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture
def proto(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*.py", "*.pyi", "*.binpb"))
    return tmp_path / "proto"


def test_the_protocol_breaks_no_caller_of_the_released_one():
    found = breaking(ROOT / "proto")
    assert (found.returncode, found.stdout) == (0, "")
    assert 'buf" breaking proto --against proto/reid.v1.binpb' in (ROOT / "scripts" / "test").read_text()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("  bool only_matches = 11;\n", "", 'Previously present field "11" with name "only_matches"'),
        ("bool only_matches = 11;", "bool only_matches = 21;", 'Previously present field "11"'),
        ("bool only_matches = 11;", "int64 only_matches = 11;", 'changed type from "bool" to "int64"'),
        ("  rpc Embed(EmbedRequest) returns (EmbedResponse);\n", "", 'Previously present RPC "Embed"'),
        (
            "rpc Rank(RankRequest) returns (stream RankResponse);",
            "rpc Rank(RankRequest) returns (RankResponse);",
            "Rank",
        ),
    ],
    ids=["a field is gone", "a field has another number", "a field has another type", "an rpc is gone", "no stream"],
)
def test_what_would_break_a_caller_is_refused(proto: Path, before: str, after: str, said: str):
    file = proto / "reid" / "v1" / "reid.proto"
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    found = breaking(proto)
    assert found.returncode != 0
    assert said in found.stdout + found.stderr


def test_a_field_more_breaks_nobody(proto: Path):
    file = proto / "reid" / "v1" / "reid.proto"
    file.write_text(file.read_text().replace("bool only_matches = 11;", "bool only_matches = 11;\n\n  bool more = 99;"))
    assert breaking(proto).returncode == 0
