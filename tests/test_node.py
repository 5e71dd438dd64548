import json
import shutil
import subprocess
from pathlib import Path

import pytest

from reidserve.client import Client
from tests.conftest import Server

NODE = Path(__file__).parent / "node"
PROTO = Path(__file__).parents[1] / "proto"


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None or not (NODE / "node_modules").is_dir():
        pytest.skip("needs Node.js and `npm ci --prefix tests/node`, as .ci/run does")
    return found


def test_a_client_made_from_the_proto_in_another_language_gets_the_same_hits(node: str, server: Server, crops: Path):
    path = sorted(crops.iterdir())[7]
    command = [node, str(NODE / "search.mjs"), str(PROTO), server.target, str(path), "12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stderr
    with Client(server.target) as client:
        hits = client.search(path, top_k=12).hits
    fields = ("entryId", "pid", "camid", "score", "rank")
    assert [tuple(hit[field] for field in fields) for hit in json.loads(answer.stdout)] == [
        (hit.entry_id, hit.pid, hit.camid, hit.score, hit.rank) for hit in hits
    ]
