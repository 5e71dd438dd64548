import dataclasses
from pathlib import Path

import pytest

from reidserve.errors import ConfigError
from reidserve.index import parse_place
from reidserve.server.settings import Settings, gallery_name, read_address, without_secrets

SERVED = {"model": Path("model"), "galleries": [Path("shop.gallery")]}


def settings(**said) -> Settings:
    return Settings(**{**SERVED, **said})


def test_what_must_be_said_is_what_to_serve():
    bare = settings()
    assert (bare.listen, bare.http, bare.read_only) == ("127.0.0.1:50051", None, False)
    needed = {field.name for field in dataclasses.fields(Settings) if field.default is dataclasses.MISSING}
    assert needed == {"model", "galleries"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"galleries": []}, "there is no gallery to serve: give --gallery FOLDER"),
        ({"galleries": [Path("a/x.gallery"), Path("b/x")]}, "two galleries are named 'x'"),
        ({"grace": -1.0}, "--grace must be 0 to 86,400.0, got -1.0"),
        ({"grace": float("nan")}, "--grace must be 0 to 86,400.0, got nan"),
        ({"deadline": 0.0}, "--deadline must be 0.001 to 86,400.0, got 0.0"),
        ({"probe_period": float("inf")}, "--probe-period must be 0 to 86,400.0, got inf"),
        ({"images_in_flight": 0}, "--images-in-flight must be 1 to"),
        ({"images_in_flight": 8, "images_per_call": 9}, "--images-per-call must be 1 to 8, got 9"),
        ({"message_bytes": 100}, "--message-bytes must be 65,536 to 1,073,741,824, got 100"),
        ({"batch": 0}, "--batch must be 1 to 4,096, got 0"),
        ({"max_memory": 0}, "--max-memory must be 1 to"),
        ({"trace_ratio": 1.5}, "--trace-ratio must be 0 to 1, got 1.5"),
        ({"listen": "nonsense"}, "--listen must be host:port with a port up to 65535, got 'nonsense'"),
        ({"http": "127.0.0.1:99999"}, "--http must be host:port with a port up to 65535"),
        ({"listen": "unix:/tmp/x:1"}, "--listen must be host:port"),
        ({"listen": "0.0.0.0:50051"}, "give --tls-cert and --tls-key, or --insecure"),
        (
            {"listen": "0.0.0.0:50051", "tls_cert": Path("a.pem"), "tls_key": Path("a.key")},
            "any of them could ask for anything: give --keys or --tls-client-ca, or --insecure",
        ),
        ({"http": "10.1.2.3:8080"}, "--http 10.1.2.3:8080 is reached from other machines"),
        ({"listen": "server.example:50051"}, "is reached from other machines"),
        ({"tls_cert": Path("a.pem")}, "--tls-cert and --tls-key belong together"),
        ({"tls_key": Path("a.key")}, "--tls-cert and --tls-key belong together"),
        ({"tls_client_ca": Path("ca.pem")}, "--tls-client-ca is of no use without TLS"),
        ({"metrics": True}, "--metrics are shown at /metrics of HTTP"),
        ({"otlp": "127.0.0.1:4318"}, "--otlp must be the URL of a collector"),
        ({"otlp": "http://[::1"}, "--otlp must be the URL of a collector"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(said, message):
    with pytest.raises(ConfigError) as refusal:
        settings(**said)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "said",
    [
        {"listen": "127.8.9.1:0", "http": "localhost:0"},
        {"listen": "[::1]:50051"},
        {"listen": "0.0.0.0:50051", "insecure": True},
        {"listen": "[::]:50051", "tls_cert": Path("a.pem"), "tls_key": Path("a.key"), "tls_client_ca": Path("ca.pem")},
        {"listen": "[::]:50051", "tls_cert": Path("a.pem"), "tls_key": Path("a.key"), "keys": Path("keys.json")},
        {"metrics": True, "http": "127.0.0.1:0"},
        {"otlp": "https://user:word@collector.example/v1/traces"},
        {"images_in_flight": 8, "images_per_call": 8, "batch": 4096, "grace": 0.0},
    ],
)
def test_settings_that_fit_together_are_taken(said):
    made = settings(**said)
    assert {name: getattr(made, name) for name in said} == said


def test_an_address_is_a_host_and_a_port():
    assert read_address("127.0.0.1:50051") == ("127.0.0.1", 50051)
    assert read_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize(("folder", "name"), [("a/shop.gallery", "shop"), ("shop", "shop"), ("x.gallery/", "x")])
def test_a_gallery_is_named_by_its_folder(folder, name):
    assert gallery_name(Path(folder)) == name


def test_a_gallery_in_milvus_is_named_by_its_url():
    assert gallery_name(parse_place("milvus://127.0.0.1:19530/mall")) == "mall"


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ({"max_memory": 2**30}, "--max-memory is"),
        ({"index": "flat", "index_device": "gpu"}, "--index, --index-device is"),
    ],
)
def test_what_is_of_memory_is_refused_beside_a_gallery_in_milvus(said, flags):
    places = (Path("a"), parse_place("milvus://127.0.0.1:19530/mall"))
    with pytest.raises(
        ConfigError, match=f"{flags} of galleries in this server's memory, and milvus://127.0.0.1:19530/mall"
    ):
        settings(galleries=places, **said)
    assert settings(galleries=places).galleries == places


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
        ("https://user:word@host/v1/traces", "https://***@host/v1/traces"),
        ("https://host/v1?key=word", "https://host/v1"),
        ("https://a@b:word@host", "https://***@host"),
        ("word?key=word", "word"),
    ],
)
def test_what_is_secret_in_a_url_is_not_shown(url, shown):
    assert without_secrets(url) == shown
