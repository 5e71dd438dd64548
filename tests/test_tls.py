import asyncio
import logging
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
import uvicorn

from reidserve.errors import ConfigError
from reidserve.server.guard.tls import grpc_credentials, https_context, read_certificate, watch_certificate

OURS = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Files:
    """A server's files, and who signs what is in them."""

    folder: Path

    @property
    def chain(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def clients(self) -> Path:
        return self.folder / "clients.crt"

    def issue(self, authority: trustme.CA) -> None:
        """Put another certificate and key in the place of those that are there."""
        issued = authority.issue_cert("localhost", "127.0.0.1")
        replace(self.chain, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        replace(self.key, issued.private_key_pem.bytes())

    def trust(self, authority: trustme.CA) -> None:
        """Let in the clients of this authority and of no other."""
        replace(self.clients, authority.cert_pem.bytes())


def replace(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".new")
    partial.write_bytes(data)
    partial.chmod(0o600)
    partial.rename(path)


@pytest.fixture(scope="module")
def one() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, one: trustme.CA) -> Files:
    made = Files(tmp_path)
    made.issue(one)
    return made


@asynccontextmanager
async def grpc_server(files: Files, *, mutual: bool = False) -> AsyncIterator[str]:
    """A server that sends back what it gets."""

    async def echo(request: bytes, context: object) -> bytes:
        return request

    certificate = watch_certificate(files.chain, files.key, files.clients if mutual else None, look_seconds=0)
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler}),))
    port = server.add_secure_port("127.0.0.1:0", grpc_credentials(certificate))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def dial(target: str, trusted: trustme.CA, client: trustme.LeafCert | None = None) -> grpc.aio.Channel:
    """A channel with a connection of its own."""
    credentials = grpc.ssl_channel_credentials(
        trusted.cert_pem.bytes(),
        *(() if client is None else (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())),
    )
    return grpc.aio.secure_channel(target, credentials, options=OURS)


async def echo(channel: grpc.aio.Channel) -> bytes:
    ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.Echo/Echo")
    return await ask(b"hello", timeout=10)


async def is_let_in(target: str, trusted: trustme.CA, client: trustme.LeafCert | None = None) -> bool:
    async with dial(target, trusted, client) as channel:
        try:
            return await echo(channel) == b"hello"
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


# gRPC


async def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_live_on(files, one, other):
    async with grpc_server(files) as target, dial(target, one) as old:
        assert await echo(old) == b"hello"
        assert (await is_let_in(target, one), await is_let_in(target, other)) == (True, False)
        files.issue(other)
        assert (await is_let_in(target, one), await is_let_in(target, other)) == (False, True)
        assert await echo(old) == b"hello"


async def test_no_call_is_dropped_while_certificates_change(files, one, other):
    both = grpc.ssl_channel_credentials(one.cert_pem.bytes() + other.cert_pem.bytes())
    async with grpc_server(files) as target, grpc.aio.secure_channel(target, both, options=OURS) as old:
        stop, answered = asyncio.Event(), 0

        async def ask() -> None:
            nonlocal answered
            while not stop.is_set():
                assert await echo(old) == b"hello"
                async with grpc.aio.secure_channel(target, both, options=OURS) as new:
                    assert await echo(new) == b"hello"
                answered += 2

        asking = asyncio.create_task(ask())
        for turn in range(6):
            files.issue(other if turn % 2 == 0 else one)
            until = answered + 4
            while answered < until and not asking.done():
                await asyncio.sleep(0.01)
        stop.set()
        await asking
        assert answered >= 24


@pytest.mark.parametrize("damage", ["garbage", "missing", "another key", "open to others", "encrypted"])
async def test_a_broken_new_certificate_keeps_the_old_and_is_logged(files, one, other, damage, caplog):
    async with grpc_server(files) as target:
        break_files(files, damage, other)
        assert await is_let_in(target, one)
        assert await is_let_in(target, one)
        (logged,) = [record for record in caplog.records if record.name.startswith("reidserve")]
        assert (logged.levelno, "what was read before goes on" in logged.getMessage()) == (logging.ERROR, True)
        assert "PRIVATE" not in logged.getMessage()
        files.issue(other)
        assert await is_let_in(target, other)


def break_files(files: Files, damage: str, authority: trustme.CA) -> None:
    match damage:
        case "garbage":
            replace(files.chain, b"-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
        case "missing":
            files.chain.unlink()
        case "another key":
            replace(files.key, authority.issue_cert("localhost").private_key_pem.bytes())
        case "open to others":
            files.key.chmod(0o644)
        case "encrypted":
            encrypt = ["openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", str(files.key)]
            replace(files.key, subprocess.run(encrypt, capture_output=True, check=True).stdout)


async def test_clients_need_a_certificate_of_the_authority_and_another_one_takes_its_place(files, one, other):
    files.trust(one)
    mine, foreign = one.issue_cert("camera@example.com"), other.issue_cert("camera@example.com")

    async def let_in(target: str) -> list[bool]:
        return [await is_let_in(target, one, client) for client in (None, mine, foreign)]

    async with grpc_server(files, mutual=True) as target:
        assert await let_in(target) == [False, True, False]
        files.trust(other)
        assert await let_in(target) == [False, False, True]


async def test_without_an_authority_for_clients_any_client_is_let_in(files, one, other):
    async with grpc_server(files) as target:
        assert await is_let_in(target, one, other.issue_cert("camera@example.com"))


# HTTPS


@asynccontextmanager
async def https_server(files: Files, *, mutual: bool = False) -> AsyncIterator[int]:
    """uvicorn, which says which path it was asked for."""

    async def answer(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    certificate = watch_certificate(files.chain, files.key, files.clients if mutual else None, look_seconds=0)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        answer,
        lifespan="off",
        log_config=None,
        ssl_context_factory=lambda config, default: https_context(certificate),
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def client_context(trusted: trustme.CA, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    trusted.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    return context


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    reply = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert path.encode() in reply
    return reply[:15]


async def is_answered(port: int, context: ssl.SSLContext, *, name: str = "localhost") -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    except (ssl.SSLError, ConnectionError):
        return False
    try:
        return await get(reader, writer, "/a") == b"HTTP/1.1 200 OK"
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_https_shows_a_new_certificate_to_new_connections_and_old_ones_live_on(files, one, other, name):
    async with https_server(files) as port:
        trusting_one, trusting_other = client_context(one), client_context(other)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting_one, server_hostname=name)
        assert await get(reader, writer, "/old") == b"HTTP/1.1 200 OK"
        files.issue(other)
        assert not await is_answered(port, trusting_one, name=name)
        assert await is_answered(port, trusting_other, name=name)
        replace(files.chain, b"garbage")
        assert await is_answered(port, trusting_other, name=name)
        assert await get(reader, writer, "/older") == b"HTTP/1.1 200 OK"
        writer.transport.abort()


async def test_https_clients_need_a_certificate_of_the_authority_and_another_one_takes_its_place(files, one, other):
    files.trust(one)
    mine, foreign = one.issue_cert("camera@example.com"), other.issue_cert("camera@example.com")
    contexts = [client_context(one, client) for client in (None, mine, foreign)]

    async def let_in(port: int) -> list[bool]:
        return [await is_answered(port, context) for context in contexts]

    async with https_server(files, mutual=True) as port:
        assert await let_in(port) == [False, True, False]
        files.trust(other)
        assert await let_in(port) == [False, False, True]


async def test_a_session_is_not_taken_up_again_by_a_client_that_is_let_in_no_more(files, one, other):
    files.trust(one)
    context = client_context(one, one.issue_cert("camera@example.com"))

    def ask(port: int, session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        try:
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as secure:
                secure.sendall(b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return secure.recv(15), secure.session
        except (ssl.SSLError, ConnectionError):
            return b"", None

    async with https_server(files, mutual=True) as port:
        reply, session = await asyncio.to_thread(ask, port, None)
        assert reply == b"HTTP/1.1 200 OK"
        files.trust(other)
        reply, _ = await asyncio.to_thread(ask, port, session)
        assert reply == b""


@pytest.mark.parametrize(
    ("version", "mutual", "answered"),
    [
        (ssl.TLSVersion.TLSv1_1, False, False),
        (ssl.TLSVersion.TLSv1_2, False, True),
        (ssl.TLSVersion.TLSv1_3, False, True),
        # Its sessions could be taken up again.
        (ssl.TLSVersion.TLSv1_2, True, False),
        (ssl.TLSVersion.TLSv1_3, True, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_https_speaks_tls_1_2_and_with_clients_certificates_1_3(files, one, version, mutual, answered):
    files.trust(one)
    context = client_context(one, one.issue_cert("camera@example.com"))
    context.minimum_version = context.maximum_version = version
    async with https_server(files, mutual=mutual) as port:
        assert await is_answered(port, context) is answered


# What is read


def test_files_that_do_not_fit_are_refused_and_say_what_is_wanted(files, one, other):
    assert read_certificate(files.chain, files.key).clients is None
    with pytest.raises(ConfigError, match=f"{files.clients} cannot be read: No such file"):
        read_certificate(files.chain, files.key, files.clients)
    replace(files.clients, b"nothing")
    with pytest.raises(ConfigError, match="and, where clients need certificates, their authorities, all PEM"):
        read_certificate(files.chain, files.key, files.clients)
    replace(files.key, other.issue_cert("localhost").private_key_pem.bytes())
    with pytest.raises(ConfigError, match=r"must be a certificate, its own key without a password.*MISMATCH"):
        read_certificate(files.chain, files.key)


async def test_the_commands_of_the_documentation_make_certificates_that_serve(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    (openssl (?:req|x509) (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    subprocess.run(["bash", "-e", "-c", "\n".join(commands)], cwd=tmp_path, capture_output=True, check=True)
    files = Files(tmp_path)
    (tmp_path / "ca.crt").rename(files.clients)
    chain, key = (tmp_path / name for name in ("client.crt", "client.key"))
    async with grpc_server(files, mutual=True) as target:
        trusted = files.clients.read_bytes()
        known = grpc.ssl_channel_credentials(trusted, key.read_bytes(), chain.read_bytes())
        unknown = grpc.ssl_channel_credentials(trusted)
        async with grpc.aio.secure_channel(target, known) as channel:
            assert await echo(channel) == b"hello"
        async with grpc.aio.secure_channel(target, unknown) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await echo(channel)


def test_the_key_is_in_no_text(files):
    certificate = read_certificate(files.chain, files.key)
    assert certificate.key == files.key.read_bytes()
    assert "PRIVATE" not in repr(certificate)
