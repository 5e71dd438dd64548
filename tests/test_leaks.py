"""What leaves a server, whoever asks for whatever: no secret, and no word of where its files are."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from reidserve.proto.reid.v1 import reid_pb2
from tests.conftest import BIN
from tests.test_keys import add

SECRET = "0123456789abcdef" * 4
UNKNOWN = f"reid_0123456789ab_{SECRET}"


@dataclass
class Guarded:
    """A server with keys.

    Attributes:
        target, http: its host:port.
        folder: where all its files are.
        keys: by name.
    """

    target: str
    http: str
    folder: Path
    keys: dict[str, str]


@pytest.fixture(scope="module")
def guarded(model: Path, gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "models" / "damaged").mkdir(parents=True)
    (folder / "models" / "empty").mkdir()
    (folder / "models" / "damaged" / "artifact.json").write_text("{")
    (folder / "model").symlink_to(model)
    subprocess.run(["cp", "-r", gallery, folder / "mall.gallery"], check=True)
    everything = {"search": ("*",), "write": ("*",), "admin": ("*",)}
    keys = {
        "boss": add(folder / "keys.json", "boss", scopes=everything),
        "cameras": add(folder / "keys.json", "cameras", scopes={"search": ("mall",)}, images_per_second=1.0),
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(BIN / "reid-serve", "--model", folder / "model", "--gallery", folder / "mall.gallery", "--json"),
                *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "debug"),
                *("--keys", folder / "keys.json", "--audit", folder / "audit.jsonl"),
                *("--models-root", folder / "models", "--snapshots", folder / "snapshots"),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            ready = json.loads(process.stdout.readline())
        yield Guarded(ready["listening"], ready["http"], folder, keys)
        process.terminate()
        assert process.wait(30) == 0


ASKS = [
    ("SearchService/Search", reid_pb2.SearchRequest(gallery="/etc", entry_id="x")),
    ("SearchService/Search", reid_pb2.SearchRequest(gallery="mall", entry_id="../../etc/passwd")),
    ("SearchService/Search", reid_pb2.SearchRequest(gallery="mall", image=b"no image")),
    ("SearchService/Search", reid_pb2.SearchRequest(gallery="mall", embedding=b"123")),
    ("SearchService/Search", reid_pb2.SearchRequest(gallery="mall", entry_id="x", generation=10**6)),
    ("SearchService/Embed", reid_pb2.EmbedRequest(image=b"\xff\xd8\xff\xe0")),
    ("GalleryService/GetGallery", reid_pb2.GetGalleryRequest(gallery="../mall")),
    ("GalleryService/ListEntries", reid_pb2.ListEntriesRequest(gallery="mall", page_token="/etc/passwd")),
    ("GalleryService/BatchDeleteEntries", reid_pb2.BatchDeleteEntriesRequest(gallery="mall")),
    ("GalleryService/BatchUpsertEntries", reid_pb2.BatchUpsertEntriesRequest(gallery="mall")),
    ("GalleryService/CreateSnapshot", reid_pb2.CreateSnapshotRequest(gallery="mall", name="../../../tmp/x")),
    ("GalleryService/CreateSnapshot", reid_pb2.CreateSnapshotRequest(gallery="mall", name="s" * 5000)),
    ("ModelService/Reload", reid_pb2.ReloadRequest(model="damaged")),
    ("ModelService/Reload", reid_pb2.ReloadRequest(model="empty")),
    ("ModelService/Reload", reid_pb2.ReloadRequest(model="missing")),
    ("ModelService/Reload", reid_pb2.ReloadRequest(model="../model")),
    ("ModelService/Reload", reid_pb2.ReloadRequest(model="/etc")),
    ("ModelService/Reload", reid_pb2.ReloadRequest(galleries={"mall": "../mall.gallery"})),
]


def refusal(channel, name, raw, keys):
    """The status of a refused call, and all of what came with it."""
    metadata = [("authorization", f"Bearer {key}") for key in keys]
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/reid.v1.{name}")(raw, metadata=metadata, timeout=30)
    said = [refused.value.details(), *(str(value) for _, value in refused.value.trailing_metadata())]
    return refused.value.code(), " ".join(said)


def check(text: str, guarded: Guarded) -> None:
    for word in (str(guarded.folder), "keys.json", "server.log", "Traceback", "site-packages"):
        assert word not in text
    for token in (UNKNOWN, *guarded.keys.values()):
        assert token[18:40] not in text


@pytest.mark.parametrize(("name", "request_"), ASKS)
def test_a_refusal_says_nothing_of_the_servers_files_or_of_keys(guarded, name, request_):
    raw = request_.SerializeToString()
    boss, cameras = guarded.keys["boss"], guarded.keys["cameras"]
    with grpc.insecure_channel(guarded.target) as channel:
        codes = []
        for keys in ((), (UNKNOWN,), (boss[:-1],), (boss, boss), (cameras,), (boss,)):
            code, said = refusal(channel, name, raw, keys)
            check(said, guarded)
            codes.append(code)
    assert set(codes[:4]) == {grpc.StatusCode.UNAUTHENTICATED}
    assert codes[5] in {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
    assert codes[4] in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED, codes[5]}


@pytest.mark.parametrize(
    "path", ["/", "/v1/galleries", "/v1/galleries/%2e%2e%2fmall", "/..%2f..%2fetc/passwd", "/v1/x"]
)
@pytest.mark.parametrize("key", [None, UNKNOWN, "boss"])
def test_http_says_nothing_of_them_either(guarded, path, key):
    headers = {} if key is None else {"Authorization": f"Bearer {guarded.keys.get(key, key)}"}
    request = urllib.request.Request(f"http://{guarded.http}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, said = response.status, response.read().decode() + str(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            status, said = error.code, error.read().decode() + str(error.headers)
    check(said, guarded)
    assert status < 500
    if path == "/v1/galleries":
        assert status == (200 if key == "boss" else 401)


def test_a_revoked_key_is_refused_soon_and_no_secret_is_in_a_log(guarded):
    token = add(guarded.folder / "keys.json", "short")
    name, raw = "GalleryService/GetGallery", reid_pb2.GetGalleryRequest(gallery="mall").SerializeToString()

    def is_let_in() -> bool:
        try:
            channel.unary_unary(f"/reid.v1.{name}")(raw, metadata=[("authorization", f"Bearer {token}")], timeout=30)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
        return True

    with grpc.insecure_channel(guarded.target) as channel:
        wait_until(is_let_in)
        revoke = ["keys", "revoke", "short", "--keys", guarded.folder / "keys.json"]
        subprocess.run([BIN / "reid-serve", *revoke], check=True, capture_output=True)
        wait_until(lambda: not is_let_in())
    for written in ("server.log", "audit.jsonl", "keys.json"):
        text = (guarded.folder / written).read_text()
        assert text
        for key in (token, UNKNOWN, *guarded.keys.values()):
            assert key[18:40] not in text


def test_writes_that_a_key_does_not_allow_are_in_the_audit_log(guarded):
    raw = reid_pb2.BatchDeleteEntriesRequest(gallery="mall", entry_ids=["x"]).SerializeToString()
    with grpc.insecure_channel(guarded.target) as channel:
        code, _ = refusal(channel, "GalleryService/BatchDeleteEntries", raw, [guarded.keys["cameras"]])
        assert code is grpc.StatusCode.PERMISSION_DENIED
        # What is asked without a key, or only read, is not: nobody fills the disk with it.
        refusal(channel, "GalleryService/BatchDeleteEntries", raw, [])
        search = reid_pb2.SearchRequest(gallery="other", entry_id="x").SerializeToString()
        refusal(channel, "SearchService/Search", search, [guarded.keys["cameras"]])
    last = json.loads((guarded.folder / "audit.jsonl").read_text().splitlines()[-1])
    wanted = {"caller": "cameras", "what": "refused", "gallery": "mall", "result": "PERMISSION_DENIED"}
    assert wanted.items() <= last.items()
    assert last["method"] == "reid.v1.GalleryService/BatchDeleteEntries"


def wait_until(holds) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
