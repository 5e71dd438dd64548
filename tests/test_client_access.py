import asyncio
from pathlib import Path

import grpc
import pytest
import trustme

from reidserve.client import AsyncClient, Client, QueryError, Tls, UnavailableError
from reidserve.client.connection import Connection, is_loopback
from reidserve.proto.reid.v1 import reid_pb2
from tests.scripted import scripted

ANSWERS = {"GetGallery": lambda raw, context: reid_pb2.GetGalleryResponse().SerializeToString()}


def ask_by_sync(target, **options):
    with Client(target, timeout=10, retries=0, **options) as client:
        return client.gallery()


def ask_by_asyncio(target, **options):
    async def go():
        async with AsyncClient(target, timeout=10, retries=0, **options) as client:
            return await client.gallery()

    return asyncio.run(go())


@pytest.fixture(params=[ask_by_sync, ask_by_asyncio])
def ask(request):
    return request.param


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and a caller's certificate.pem and private.pem."""
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    caller = authority.issue_cert("caller.example")
    caller.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    caller.private_key_pem.write_to_path(folder / "private.pem")
    return folder


def credentials(authority: trustme.CA, name: str, *, callers: bool = False) -> grpc.ServerCredentials:
    own = authority.issue_cert(name)
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    ca = authority.cert_pem.bytes() if callers else None
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=callers)


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1",
        "127.0.0.1:50051",
        "127.9.9.9:1",
        "[::1]:50051",
        "ipv4:127.0.0.1:1",
        "ipv6:[::1]:1",
        "dns:///localhost:1",
        "dns:localhost:1",
        "unix:/run/reid.sock",
    ],
)
def test_a_target_on_this_machine_is_known_to_be(target):
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.7:50051",
        "reid.example:443",
        "localhost.example:1",
        "127.0.0.1.example:1",
        "[::2]:1",
        "ipv4:127.0.0.1:1,10.0.0.7:1",
        "dns://10.0.0.7/reid.example:1",
        "0.0.0.0:1",
        "127.0.0.1",
    ],
)
def test_any_other_target_is_elsewhere(target):
    assert not is_loopback(target)


def test_a_key_is_shown_with_every_call_and_none_where_there_is_none(ask, monkeypatch):
    with scripted(ANSWERS) as server:
        ask(server.target)
        ask(server.target, key="reid_abc")
        monkeypatch.setenv("REIDSERVE_KEY", "reid_env")
        ask(server.target)
        ask(server.target, key="reid_abc")
    shown = [metadata.get("authorization") for _, metadata in server.calls]
    assert shown == [None, "Bearer reid_abc", "Bearer reid_env", "Bearer reid_abc"]


@pytest.mark.parametrize("target", ["reid.example:50051", "10.0.0.7:50051"])
def test_a_key_never_travels_in_clear(target, monkeypatch):
    with pytest.raises(QueryError, match=r"would travel to .* in clear: connect with TLS") as refusal:
        Client(target, key="reid_secret")
    assert "reid_secret" not in str(refusal.value)
    Client(target, key="reid_secret", tls=Tls()).close()
    monkeypatch.setenv("REIDSERVE_KEY", "reid_secret")
    with pytest.raises(QueryError, match="unset REIDSERVE_KEY"):
        Client(target)
    monkeypatch.delenv("REIDSERVE_KEY")
    Client(target).close()


@pytest.mark.parametrize("key", ["two words", "ключ", "line\nbreak"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key):
    with pytest.raises(QueryError, match="printable ASCII") as refusal:
        Client(key=key)
    assert key not in str(refusal.value)
    assert "reid_secret" not in repr(Connection(key="reid_secret"))


def test_a_server_is_known_by_its_certificate(ask, authority, files):
    with scripted(ANSWERS, credentials=credentials(authority, "localhost")) as server:
        port = server.target.rpartition(":")[2]
        ask(f"localhost:{port}", tls=Tls(ca=files / "ca.pem"), key="reid_abc")
        with pytest.raises(UnavailableError):  # a name that it does not have
            ask(server.target, tls=Tls(ca=files / "ca.pem"))
        ask(server.target, tls=Tls(ca=files / "ca.pem", server_name="localhost"))
        with pytest.raises(UnavailableError):  # the public authorities did not sign it
            ask(f"localhost:{port}", tls=Tls())
        with pytest.raises(UnavailableError):
            ask(f"localhost:{port}")
    assert [metadata.get("authorization") for _, metadata in server.calls] == ["Bearer reid_abc", None]


def test_a_client_shows_its_own_certificate_where_it_has_one(ask, authority, files):
    own = Tls(ca=files / "ca.pem", certificate=files / "certificate.pem", private_key=files / "private.pem")
    with scripted(ANSWERS, credentials=credentials(authority, "localhost", callers=True)) as server:
        target = f"localhost:{server.target.rpartition(':')[2]}"
        ask(target, tls=own)
        with pytest.raises(UnavailableError):
            ask(target, tls=Tls(ca=files / "ca.pem"))
    assert server.count("GetGallery") == 1


def test_a_certificate_without_its_key_is_refused_and_a_file_that_is_not_there_named(files, tmp_path):
    with pytest.raises(QueryError, match="come together"):
        Tls(certificate=files / "certificate.pem")
    with pytest.raises(FileNotFoundError, match="none.pem"):
        Client(tls=Tls(ca=tmp_path / "none.pem"))


def test_a_proxy_is_never_asked_for_what_is_on_this_machine(ask, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    with scripted(ANSWERS) as server:
        ask(server.target, key="reid_abc")
    assert server.count("GetGallery") == 1


def test_a_message_that_is_longer_than_the_client_takes_is_refused(ask):
    long = reid_pb2.GetGalleryResponse(gallery=reid_pb2.Gallery(name="x" * 5000)).SerializeToString()
    with scripted({"GetGallery": lambda raw, context: long}) as server:
        assert len(ask(server.target).name) == 5000
        with pytest.raises(Exception, match="larger than max") as failure:
            ask(server.target, max_message=4000)
    assert failure.value.code == "RESOURCE_EXHAUSTED"
