"""The client and the commands against a real server with a certificate and keys."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trustme

from reidserve.client import AccessError, BusyError, Client, NewEntry, Tls, UnavailableError
from tests.conftest import run_command, start_server, stop_server

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, server.pem, server.key, and keys for searches: searcher.key, and slow.key, once in 50 s."""
    folder, authority = tmp_path_factory.mktemp("house"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own = authority.issue_cert("localhost")
    own.cert_chain_pems[0].write_to_path(folder / "server.pem")
    own.private_key_pem.write_to_path(folder / "server.key")
    (folder / "server.key").chmod(0o600)
    for name, options in (("searcher", ()), ("slow", ("--rate", "0.02", "--burst", "1"))):
        said = run_command(
            "reid-serve", "keys", "add", name, "--keys", folder / "keys.json", "--scope", "search", *options, "--json"
        )
        assert said.returncode == 0, said.stderr
        (folder / f"{name}.key").write_text(json.loads(said.stdout)["key"] + "\n")
    return folder


@pytest.fixture(scope="module")
def target(house: Path, model: Path, gallery: Path):
    """The address of a server that asks for a key over TLS."""
    running = start_server(
        *("--model", model, "--gallery", gallery, "--keys", house / "keys.json"),
        *("--tls-cert", house / "server.pem", "--tls-key", house / "server.key", "--read-only"),
    )
    yield f"localhost:{running.target.rpartition(':')[2]}"
    assert stop_server(running) == 0


def test_a_key_lets_in_for_what_it_may_and_no_further(target, house, crops):
    path, tls = sorted(crops.iterdir())[0], Tls(ca=house / "ca.pem")
    with Client(target, tls=tls, key=(house / "searcher.key").read_text().strip()) as client:
        assert client.search(path, 3).hits[0].entry_id == path.name
        with pytest.raises(AccessError) as refusal:
            client.upsert([NewEntry("a", path)])
        assert (refusal.value.code, refusal.value.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert len(refusal.value.request_id) >= 8
    for key in (None, "reid_" + "0" * 12 + "_" + "0" * 64):
        with Client(target, tls=tls, key=key) as client, pytest.raises(AccessError) as refusal:
            client.search(path)
        assert (refusal.value.code, refusal.value.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    with Client(target, retries=0) as client, pytest.raises(UnavailableError):
        client.search(path)


def test_a_key_that_asks_too_often_is_told_when_to_ask_again(target, house, crops):
    path = sorted(crops.iterdir())[0]
    with Client(target, tls=Tls(ca=house / "ca.pem"), key=(house / "slow.key").read_text().strip()) as client:
        client.search(path, 1)
        with pytest.raises(BusyError) as refusal:
            client.search(path, 1)
    assert refusal.value.reason == "RATE_LIMITED"
    assert refusal.value.retry_after == pytest.approx(50, abs=15)


def test_the_commands_take_the_certificate_and_the_key(target, house, crops):
    path = sorted(crops.iterdir())[0]
    there = ("--server", target, "--tls-ca", house / "ca.pem")
    known = run_command("reid-search", path, *there, "--key-file", house / "searcher.key", "--json")
    assert known.returncode == 0, known.stderr
    assert json.loads(known.stdout)["hits"][0]["entry_id"] == path.name
    stranger = run_command("reid-search", path, *there, "--json")
    assert stranger.returncode == 1
    assert json.loads(stranger.stdout)["error"]["reason"] == "UNAUTHENTICATED"
    reader = run_command("reid-index", "remove", "crops", path.name, *there, "--key-file", house / "searcher.key")
    assert reader.returncode == 1
    assert "does not allow scope write" in reader.stderr
    for wrong in (("--tls-cert", house / "server.pem"), ("--key-file", house / "missing.key")):
        refused = run_command("reid-search", path, *there, *wrong)
        assert refused.returncode in (1, 2)
        assert "come together" in refused.stderr or "missing.key" in refused.stderr


def test_a_client_of_another_language_takes_the_certificate_and_the_key(target, house, crops):
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules").is_dir():
        pytest.skip("needs Node.js and `npm ci --prefix tests/node`, as .ci/run does")
    path = sorted(crops.iterdir())[0]
    environment = {**os.environ, "CA_FILE": str(house / "ca.pem")}
    environment["REIDSERVE_KEY"] = (house / "searcher.key").read_text().strip()
    command = [node, str(NODE / "search.mjs"), str(NODE.parents[1] / "proto"), target, str(path), "3"]
    known = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert known.returncode == 0, known.stderr
    assert json.loads(known.stdout)[0]["entryId"] == path.name
    del environment["REIDSERVE_KEY"]
    stranger = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert (stranger.returncode, stranger.stderr.partition(":")[0]) == (1, "UNAUTHENTICATED")


def test_a_command_sends_no_key_in_clear(house, crops):
    path = sorted(crops.iterdir())[0]
    refused = run_command("reid-search", path, "--server", "reid.example:50051", "--key-file", house / "searcher.key")
    assert refused.returncode == 2
    assert "would travel to reid.example:50051 in clear" in refused.stderr
