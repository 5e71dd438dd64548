"""reid-serve's settings by their names, wherever they stand, and its --check."""

import dataclasses
import inspect
import json
import os
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import get_type_hints

import httpx
import pytest
import trustme
from cyclopts import CycloptsError

from reidserve.client import Client
from reidserve.commands import serve as command
from reidserve.errors import UsageError
from reidserve.server.settings import Settings
from tests.conftest import BIN

ENTRY = "0001_c1s1_000000_00.png"
SWITCHES = {"config", "check", "json"}


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], bare):
    """`reid-serve --check --json` in this process: its exit code, what it says, and its standard error."""

    def run(*arguments: object) -> tuple[int, dict, str]:
        code = command.app(["--check", "--json", *map(str, arguments)])
        said, stderr = capsys.readouterr()
        return code or 0, json.loads(said), stderr

    return run


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings."""
    for name in list(os.environ):
        if name.startswith("REIDSERVE_"):
            monkeypatch.delenv(name)


def flag_of(field: str) -> str:
    return {"galleries": "gallery", "index": "index"}.get(field, field.replace("_", "-"))


def test_flags_and_settings_have_the_same_names_and_defaults():
    given = inspect.signature(command.serve).parameters
    flags = {("index" if name == "kind" else name.replace("_", "-")): one.default for name, one in given.items()}
    defaults = {flag_of(field.name): field.default for field in dataclasses.fields(Settings)}
    assert set(flags) - SWITCHES == set(defaults)
    for name, default in defaults.items():
        if default is not dataclasses.MISSING:
            assert flags[name] == default, name


@pytest.fixture
def parsed(bare):
    """What the command makes of flags, and where it found what."""

    def parse(*arguments: str) -> tuple[dict[str, object], dict[str, str]]:
        _, bound, _ = command.app.parse_args([*arguments], exit_on_error=False, print_error=False)
        return bound.arguments, dict(command.sources.found)

    return parse


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(parsed, tmp_path, monkeypatch):
    file = tmp_path / "serve.toml"
    file.write_text(
        'gallery = ["a", "b"]\nmodel = "of the file"\nimages_per_call = 3\nmax-memory = "2GB"\n'
        "grace = 1.5\nread-only = true\n"
    )
    monkeypatch.setenv("REIDSERVE_MODEL", "of the environment")
    monkeypatch.setenv("REIDSERVE_IMAGES_PER_CALL", "4")
    monkeypatch.setenv("REIDSERVE_REFLECTION", "false")
    told, found = parsed("--images-per-call", "5", "--config", str(file))
    assert told["gallery"] == ["a", "b"]
    assert told["model"] == "of the environment"
    assert told["images_per_call"] == 5
    assert (told["max_memory"], told["grace"], told["read_only"]) == (2 * 10**9, 1.5, True)
    assert told["reflection"] is False
    assert found == {
        "config": "flag",
        "gallery": str(file),
        "grace": str(file),
        "images-per-call": "flag",
        "max-memory": str(file),
        "model": "REIDSERVE_MODEL",
        "read-only": str(file),
        "reflection": "REIDSERVE_REFLECTION",
    }


def test_the_environment_may_name_several_galleries_and_the_file(parsed, tmp_path, monkeypatch):
    (tmp_path / "serve.toml").write_text('listen = "127.0.0.1:1"\n')
    monkeypatch.setenv("REIDSERVE_GALLERY", "a:b")
    monkeypatch.setenv("REIDSERVE_CONFIG", str(tmp_path / "serve.toml"))
    told, found = parsed()
    assert (told["gallery"], told["listen"]) == (["a", "b"], "127.0.0.1:1")
    assert found["gallery"] == "REIDSERVE_GALLERY"


def test_a_url_among_the_galleries_of_the_environment_keeps_its_colons(parsed, monkeypatch):
    urls = ["milvus://127.0.0.1:19530/mall", "milvus:///srv/shop.db/shop", "milvus://[::1]:19530/x"]
    monkeypatch.setenv("REIDSERVE_GALLERY", ":".join(["a", *urls, "/b/c.gallery"]))
    told, _ = parsed()
    assert told["gallery"] == ["a", *urls, "/b/c.gallery"]


def test_each_setting_is_taken_from_each_source(parsed, tmp_path, monkeypatch):
    """Above all `keys`, which is the name of a command too: a file of keys that is not taken lets anyone in."""
    values = {"precision": "int8", "device": "auto", "index": "flat", "index-device": "gpu", "log-format": "json"}
    values |= {"log-level": "debug", "max-memory": "1GB", "reflection": "false", "retain": "7d"}
    of_type = {bool: "true", int: "7", float: "0.5"}
    defaults = {flag_of(field.name): field.default for field in dataclasses.fields(Settings)}
    said = {name: values.get(name, of_type.get(type(default), "7")) for name, default in defaults.items()}

    file = tmp_path / "serve.toml"
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in said.items()))
    from_file, found = parsed("--config", str(file))
    assert found == {"config": "flag", **dict.fromkeys(said, str(file))}
    variables = {name: "REIDSERVE_" + name.upper().replace("-", "_") for name in said}
    for name, variable in variables.items():
        monkeypatch.setenv(variable, said[name])
    from_environment, found = parsed()
    assert found == variables
    for name, default in defaults.items():
        parameter = "kind" if name == "index" else name.replace("-", "_")
        assert from_file[parameter] == from_environment[parameter] != default, name


def test_flags_for_galleries_take_the_place_of_those_of_the_file(parsed, tmp_path):
    (tmp_path / "serve.toml").write_text('gallery = ["a", "b"]\n')
    told, _ = parsed("--gallery", "c", "--config", str(tmp_path / "serve.toml"))
    assert told["gallery"] == ["c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gallry = 1", "gallry in {file} is no setting: is gallery meant?"),
        ("max_memry = 1", "max_memry in {file} is no setting: is max-memory meant?"),
        ("zzz = 1", "zzz in {file} is no setting: reid-serve --help names them"),
        ("check = true", "check in {file} is no setting"),
        ("json = true", "json in {file} is no setting"),
        ('config = "other.toml"', "config in {file} is no setting"),
        ("[grace]\na = 1", "grace in {file} is a table: settings stand one a line, outside tables"),
        ("[serve]\ngrace = 1", "serve in {file} is no setting"),
        ("grace =", "{file} is no TOML: Invalid value"),
    ],
)
def test_a_file_that_says_what_is_no_setting_is_refused(parsed, tmp_path, text, message):
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as refusal:
        parsed("--gallery", "a", "--config", str(file))
    assert message.format(file=file) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("REIDSERVE_GALERY", "REIDSERVE_GALERY in the environment is no setting: is REIDSERVE_GALLERY meant?"),
        ("REIDSERVE_NO_REFLECTION", "is REIDSERVE_REFLECTION meant?"),
        ("REIDSERVE_CHECK", "REIDSERVE_CHECK in the environment is no setting"),
        ("REIDSERVE_gallery", "REIDSERVE_gallery in the environment is no setting"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(parsed, monkeypatch, name, message):
    monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=message):
        parsed("--gallery", "a")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--config", "serve.toml"), {}, ("soon", "serve.toml")),
        (("--gallery", "g"), {"REIDSERVE_GRACE": "soon"}, ("soon", "REIDSERVE_GRACE")),
        (("--galery", "g"), {}, ("--galery", "--gallery")),
        ((), {}, ("--gallery",)),
    ],
)
def test_wrong_values_and_names_are_told_with_where_they_stand(
    parsed, tmp_path, monkeypatch, arguments, environment, message
):
    monkeypatch.chdir(tmp_path)
    Path("serve.toml").write_text('gallery = "g"\ndeadline = "soon"\n')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CycloptsError) as refusal:
        parsed(*arguments)
    assert all(part in str(refusal.value) for part in message)


def test_a_file_that_is_not_there_is_said(parsed, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.toml"):
        parsed("--gallery", "g", "--config", str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (
            (),
            {"REIDSERVE_GRAZE": "1"},
            2,
            "REIDSERVE_GRAZE in the environment is no setting: is REIDSERVE_GRACE meant?",
        ),
        (("--config", "none.toml"), {}, 1, "none.toml: No such file or directory"),
        (("--listen", "0.0.0.0:1"), {}, 1, "--listen 0.0.0.0:1 is reached from other machines"),
    ],
)
def test_what_cannot_be_is_one_line_and_an_exit_code(arguments, environment, code, message):
    result = subprocess.run(
        [BIN / "reid-serve", "--check", "--gallery", "g", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    made.private_key_pem.write_to_path(tmp_path / "server.key")
    (tmp_path / "server.key").chmod(0o600)
    for number, part in enumerate(made.cert_chain_pems):
        part.write_to_path(tmp_path / "server.pem", append=number > 0)
    return tmp_path / "server.pem", tmp_path / "server.key"


def test_what_can_be_served_is_found_to_be_so(check, model, gallery, tmp_path, certificate, monkeypatch):
    cert, key = certificate
    (tmp_path / "copies").mkdir()
    file = tmp_path / "serve.toml"
    file.write_text(f'tls-cert = "{cert}"\ntls-key = "{key}"\nhttp = "127.0.0.1:0"\nmetrics = true\n')
    monkeypatch.setenv("REIDSERVE_OTLP", "http://user:word@127.0.0.1:4318/?key=word")
    code, said, stderr = check(
        *("--config", file, "--model", model, "--gallery", gallery, "--snapshots", tmp_path / "copies"),
        *("--audit", tmp_path / "audit.jsonl", "--listen", "127.0.0.1:0"),
    )
    assert (code, said["holds"]) == (0, True), stderr
    assert all(finding["fault"] is None for finding in said["checks"])
    facts = {finding["what"]: finding["fact"] for finding in said["checks"]}
    assert list(facts) == [
        *("packages of http", "packages of telemetry", "model", "gallery crops", "snapshots", "audit", "tls"),
        *("listen", "http"),
    ]
    assert facts["gallery crops"].startswith("40 entries at generation ")
    assert facts["model"].endswith("on fp32/onnxruntime-cpu, canaries hold")
    assert (facts["tls"], facts["listen"]) == ("callers need none of their own", "free")
    assert said["settings"]["tls-cert"] == {"value": str(cert), "from": str(file)}
    assert said["settings"]["gallery"] == {"value": [str(gallery)], "from": "flag"}
    assert said["settings"]["grace"] == {"value": 30.0, "from": "default"}
    assert said["settings"]["otlp"] == {"value": "http://***@127.0.0.1:4318/", "from": "REIDSERVE_OTLP"}
    assert "word" not in json.dumps(said) + stderr
    assert not (tmp_path / "audit.jsonl").exists(), "a check writes nothing"


def test_everything_that_is_wrong_is_named_at_once(check, other_model, gallery, tmp_path):
    (tmp_path / "t.json").write_text("{}")
    (tmp_path / "server.pem").write_text("none")
    (tmp_path / "server.key").write_text("none")
    (tmp_path / "server.key").chmod(0o600)
    code, said, stderr = check(
        *("--model", other_model, "--gallery", gallery, "--gallery", tmp_path / "none.gallery"),
        *("--threshold", tmp_path / "t.json", "--models-root", tmp_path / "models", "--keys", tmp_path / "keys"),
        *("--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key", "--listen", "192.0.2.1:50051"),
    )
    assert (code, said["holds"]) == (1, False)
    faults = {finding["what"]: finding["fault"] for finding in said["checks"] if finding["fault"] is not None}
    assert list(faults) == ["threshold", "gallery crops", "gallery none", "models-root", "tls", "keys", "listen"]
    assert "holds embeddings of model" in faults["gallery crops"]
    assert faults["models-root"] == f"{tmp_path}/models is no folder: make it, or name another"
    assert "--listen 192.0.2.1:50051 cannot be listened on" in faults["listen"]
    assert stderr.splitlines()[0].startswith("threshold: ")


def test_a_port_that_is_in_use_is_told_and_no_fault(check, model, gallery):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said, _ = check("--model", model, "--gallery", gallery, "--listen", address)
    assert code == 0
    assert said["checks"][-1] == {
        "what": "listen",
        "fact": "in use now, which must end before this server starts",
        "fault": None,
    }


def test_a_check_for_people_has_a_line_for_each_setting_and_each_thing(bare, capsys, model, gallery):
    command.app(["--check", "--model", str(model), "--gallery", str(gallery), "--listen", "127.0.0.1:0"])
    settings, _, checks = capsys.readouterr().out.partition("\n\n")
    assert [line.split()[0] for line in settings.splitlines()] == [
        flag_of(field.name) for field in dataclasses.fields(Settings)
    ]
    assert next(line for line in settings.splitlines() if line.startswith("grace")).split() == [
        "grace",
        "30.0",
        "default",
    ]
    assert [line.split()[0] for line in checks.splitlines()] == ["model", "gallery", "listen"]


def test_every_setting_is_written_down():
    page = Path(__file__).parents[1].joinpath("docs/operating.md").read_text()
    defaults = {flag_of(field.name): field.default for field in dataclasses.fields(Settings)}
    rows = {row.split("|")[1].strip().strip("`"): row for row in page.splitlines() if row.startswith("| `--")}
    assert set(rows) == {f"--{name}" for name in defaults}
    for name, default in defaults.items():
        variable = "REIDSERVE_" + name.upper().replace("-", "_")
        assert f"`{variable}`" in rows[f"--{name}"], name
        if isinstance(default, str | float) or (type(default) is int and name != "message-bytes"):
            shown = default if isinstance(default, str) else f"{default:g}"
            assert f"| `{shown}` |" in rows[f"--{name}"], name


def test_the_documented_file_is_one(tmp_path, parsed):
    page = Path(__file__).parents[1].joinpath("docs/operating.md").read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    said = tomllib.loads(text)
    assert len(said) > 5
    (tmp_path / "serve.toml").write_text(text)
    told, found = parsed("--config", str(tmp_path / "serve.toml"))
    assert set(found) == {"config", *(key.replace("_", "-") for key in said)}
    hints = get_type_hints(command.serve)
    assert set(told) <= set(hints)


def test_a_server_answers_http_beside_grpc_and_ends_both(model, gallery, tmp_path):
    folder = shutil.copytree(gallery, tmp_path / "shop.gallery")
    told = (
        "--model",
        model,
        "--gallery",
        folder,
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--metrics",
        "--probe-period",
        "0",
    )
    with subprocess.Popen([BIN / "reid-serve", *told, "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with httpx.Client(base_url=f"http://{ready['http']}", trust_env=False) as http:
            assert http.get("/readyz").json() == {"ready": True}
            over_http = http.post("/v1/search", json={"entryId": ENTRY}).json()["hits"]
            with Client(ready["listening"]) as client:
                hits = client.search_entry(ENTRY).hits
            assert [hit["entryId"] for hit in over_http] == [hit.entry_id for hit in hits]
            assert (
                'reidserve_requests_total{code="OK",method="reid.v1.SearchService/Search"} 2.0'
                in http.get("/metrics").text
            )
            process.terminate()
            assert process.wait(30) == 0
            with pytest.raises(httpx.ConnectError):
                http.get("/healthz")
