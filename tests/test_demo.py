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
    demo = subprocess.run([clone / "scripts/demo"], capture_output=True, text=True, timeout=600, check=False)
    assert demo.returncode == 0, demo.stderr
    hits = re.findall(r"^ +\d  [01]\.\d{6}  (\d{4}) +\d  (\d{4})_c\ds\d_\d{6}_\d\d\.jpg$", demo.stdout, re.MULTILINE)
    assert len(hits) == 5
    assert all(pid == name for pid, name in hits)
    scores = dict(re.findall(r"^(Rank-1|mAP) +(0\.\d{4})$", demo.stdout, re.MULTILINE))
    # Far above chance (1 in 200) and far below what a trained network reaches.
    assert 0.2 < float(scores["Rank-1"]) < 0.6
    assert 0.1 < float(scores["mAP"]) < 0.4
