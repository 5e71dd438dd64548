import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_runs_on_a_fresh_clone_and_prints_a_ranking_and_scores(tmp_path: Path):
    if shutil.which("git") is None:
        pytest.skip("needs git, to clone")
    clone = tmp_path / "reidserve"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    demo = subprocess.run([clone / "scripts/demo"], capture_output=True, text=True, timeout=1200, check=False)
    assert demo.returncode == 0, demo.stderr
    hits = re.findall(r"^ +\d  [01]\.\d{6}  (\d{4}) +\d  (\d{4})_c\ds\d_\d{6}_\d\d\.jpg$", demo.stdout, re.MULTILINE)
    assert len(hits) == 5
    assert all(pid == name for pid, name in hits)
    scores = dict(re.findall(r"^(Rank-1|mAP) +(0\.\d{4})$", demo.stdout, re.MULTILINE))
    untrained = re.search(r"^epoch +0/3 .*Rank-1 (0\.\d+)", demo.stderr + demo.stdout, re.MULTILINE)
    assert untrained is not None
    assert float(untrained[1]) < 0.35
    assert float(scores["Rank-1"]) > 0.8
    assert float(scores["mAP"]) > 0.5
    assert (clone / "demo/ranked.png").read_bytes().startswith(b"\x89PNG")
