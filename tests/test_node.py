import json
import os
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest
import trustme

from reidserve.client import Client
from reidserve.proto.reid.v1 import reid_pb2
from tests.conftest import Server
from tests.scripted import scripted

NODE = Path(__file__).parent / "node"
PROTO = Path(__file__).parents[1] / "proto"


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None or not (NODE / "node_modules").is_dir():
        pytest.skip("needs Node.js and `npm ci --prefix tests/node`, as .ci/run does")
    return found


def search(node: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [node, str(NODE / "search.mjs"), str(PROTO), *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name not in ("REIDSERVE_KEY", "CA_FILE")}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**kept, **environment})


def test_a_client_made_from_the_proto_in_another_language_gets_the_same_hits(node: str, server: Server, crops: Path):
    path = sorted(crops.iterdir())[7]
    answer = search(node, server.target, path, 12)
    assert answer.returncode == 0, answer.stderr
    with Client(server.target) as client:
        hits = client.search(path, top_k=12).hits
    fields = ("entryId", "pid", "camid", "score", "rank")
    assert [tuple(hit[field] for field in fields) for hit in json.loads(answer.stdout)] == [
        (hit.entry_id, hit.pid, hit.camid, hit.score, hit.rank) for hit in hits
    ]


def test_it_shows_its_key_over_tls(node: str, crops: Path, tmp_path: Path):
    path, authority = sorted(crops.iterdir())[7], trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = authority.issue_cert("localhost")
    credentials = grpc.ssl_server_credentials([(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())])

    def reply(raw: bytes, context: grpc.ServicerContext) -> bytes:
        request = reid_pb2.SearchRequest.FromString(raw)
        assert (request.image, request.top_k) == (path.read_bytes(), 12)
        return reid_pb2.SearchResponse(
            hits=[reid_pb2.Hit(entry_id="a", pid="7", score=0.5, rank=1)]
        ).SerializeToString()

    with scripted({"Search": reply}, credentials=credentials) as server:
        target = f"localhost:{server.target.rpartition(':')[2]}"
        answer = search(node, target, path, 12, REIDSERVE_KEY="reid_abc", CA_FILE=str(tmp_path / "ca.pem"))
        stranger = search(node, target, path, 12, REIDSERVE_KEY="reid_abc")
    assert answer.returncode == 0, answer.stderr
    (hit,) = json.loads(answer.stdout)
    assert (hit["entryId"], hit["pid"], hit["score"], hit["rank"]) == ("a", "7", 0.5, 1)
    assert (stranger.returncode, stranger.stderr.partition(":")[0]) == (1, "UNAVAILABLE")
    assert [metadata["authorization"] for _, metadata in server.calls] == ["Bearer reid_abc"]


def test_a_refusal_is_said_by_its_status(node: str, server: Server):
    refused = search(node, server.target, Path(__file__), 12)
    assert refused.returncode == 1
    assert refused.stderr.startswith("INVALID_ARGUMENT: expected a JPEG, PNG, WEBP, BMP image")


def test_the_page_about_clients_shows_the_file_that_is_run():
    page = (PROTO.parent / "docs" / "client.md").read_text(encoding="utf-8")
    assert page.partition("```js\n")[2].partition("```")[0] == (NODE / "search.mjs").read_text(encoding="utf-8")
