"""reid-serve: answer searches over gRPC and HTTP."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from reidserve.commands.console import (
    FAILED,
    Age,
    Device,
    Index,
    IndexDevice,
    Json,
    Memory,
    Precision,
    Size,
    make_app,
    print_facts,
    print_json,
    print_lines,
    quiet_grpc,
    run,
    warn_lines,
)
from reidserve.commands.keys import app as keys_app
from reidserve.commands.place import read_model, read_place, split_places
from reidserve.commands.sources import Sources

if TYPE_CHECKING:
    from reidserve.server import Ready, Settings

app = make_app("reid-serve")
app.command(keys_app)
# The variables of scripts/ and of the client begin like ours.
app.config = (
    sources := Sources(
        "REIDSERVE_",
        switches=("check", "json", "help", "version"),
        others=("REIDSERVE_VENV", "REIDSERVE_ENGINE", "REIDSERVE_KEY"),
    ),
)

_served = Parameter(group=Group("What is served", sort_key=1))
_changes = Parameter(group=Group("What may change", sort_key=2))
_where = Parameter(group=Group("Where, and to whom", sort_key=3))
_limits = Parameter(group=Group("Limits", sort_key=4))
_told = Parameter(group=Group("What is told", sort_key=5))
_command = Parameter(group=Group("This command", sort_key=6))

_Folder = Annotated[Path | None, Parameter(show_default=False)]
_Text = Annotated[str | None, Parameter(show_default=False)]
_Switch = Annotated[bool, Parameter(negative="", show_default=False)]


@app.default
def serve(  # the settings in one list, as --help shows them
    *,
    gallery: Annotated[list[str], Parameter(negative="", env_var_split=split_places), _served],
    model: Annotated[str, _served] = "model",
    precision: Annotated[Precision, _served] = "fp32",
    device: Annotated[Device, _served] = "cpu",
    threshold: Annotated[_Folder, _served] = None,
    kind: Annotated[Index, _served] = "auto",
    index_device: Annotated[IndexDevice, _served] = "cpu",
    max_memory: Annotated[Memory, _served] = None,
    read_only: Annotated[_Switch, _changes] = False,
    snapshots: Annotated[_Folder, _changes] = None,
    thumbnails: Annotated[_Switch, _changes] = False,
    sources_root: Annotated[_Folder, _changes] = None,
    retain: Annotated[Age, _changes] = None,
    models_root: Annotated[_Folder, _changes] = None,
    galleries_root: Annotated[_Folder, _changes] = None,
    listen: Annotated[str, _where] = "127.0.0.1:50051",
    http: Annotated[_Text, _where] = None,
    tls_cert: Annotated[_Folder, _where] = None,
    tls_key: Annotated[_Folder, _where] = None,
    tls_client_ca: Annotated[_Folder, _where] = None,
    insecure: Annotated[_Switch, _where] = False,
    keys: Annotated[_Folder, _where] = None,
    reflection: Annotated[bool, _where] = True,
    deadline: Annotated[float, _limits] = 30.0,
    images_in_flight: Annotated[int, _limits] = 256,
    images_per_call: Annotated[int, _limits] = 64,
    message_bytes: Annotated[Size, _limits] = 32 * 2**20,
    batch: Annotated[int | None, Parameter(show_default=False), _limits] = None,
    grace: Annotated[float, _limits] = 30.0,
    probe_period: Annotated[float, _limits] = 1.0,
    log_format: Annotated[Literal["pretty", "json"], _told] = "pretty",
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _told] = "info",
    audit: Annotated[_Folder, _told] = None,
    metrics: Annotated[_Switch, _told] = False,
    otlp: Annotated[_Text, _told] = None,
    trace_ratio: Annotated[float, _told] = 1.0,
    config: Annotated[_Folder, _command] = None,
    check: Annotated[_Switch, _command] = False,
    json: Annotated[Json, _command] = False,
) -> int | None:
    """Serve galleries over gRPC (reid.v1), and over HTTP where --http says so, until SIGTERM or Ctrl-C.

    Health (grpc.health.v1) is SERVING from the moment the model's canaries hold and the galleries are open; then a
    line says so. SIGTERM finishes the calls under way and exits with 0; a second one ends the process at once.

    Each setting has one name: --max-memory is REIDSERVE_MAX_MEMORY in the environment, where several galleries are
    separated by colons, and max-memory in the TOML file that --config names. A flag goes before the environment, the
    environment before the file, the file before the default. A name that is no setting is refused.

    Args:
        gallery: A gallery's folder, or milvus://HOST:PORT/NAME where Milvus holds it; may be given several times. Its
            name is the folder's without .gallery, or NAME.
        model: The artifact that the galleries were built with; or triton://host:8001/name, where another server
            computes it over the Open Inference Protocol v2, with ?contract=FOLDER where that tells no contract.
        threshold: A file with the model's calibrated threshold; searches are then told whether they found a match.
        read_only: Only read the galleries; what other processes write to them is served within about a second.
        snapshots: The folder that CreateSnapshot writes copies of galleries into; without it, it may not.
        thumbnails: Keep small pictures of the images that are written, in their gallery; they are personal data where
            the images are.
        sources_root: The folder below which lie images that may be shown, small, of entries without a thumbnail.
        retain: Remove entries that are older than this, such as 30d or 12h, once an hour, to the last byte.
        models_root: The folder below which Reload finds models; without it, it only reads --model again.
        galleries_root: The folder below which Reload finds galleries; without it, they stay.
        listen: Host and port of gRPC; port 0 takes a free one, which the ready line names.
        http: Host and port of HTTP: the same calls as JSON, /healthz, /readyz, /metrics and /docs.
        tls_cert: The certificate chain, PEM, for gRPC and HTTP; read again when it changes.
        tls_key: The certificate's private key, PEM.
        tls_client_ca: Callers must have a certificate that was signed by one of these, PEM.
        insecure: Listen beyond this machine without TLS or keys, where the network can be trusted.
        keys: The file of API keys; without it, anyone who reaches the server may ask for anything.
        reflection: Tell callers of gRPC which calls there are.
        deadline: Seconds that a call may take whose caller set no deadline.
        images_in_flight: How many images may be under way; what is above is refused at once.
        images_per_call: How many images one call may carry.
        message_bytes: How large one message may be, such as 32MiB.
        batch: How many images a lane of the engine (a core) computes at once; what was found best where it is not set.
        grace: Seconds that calls under way may take after SIGTERM.
        probe_period: Seconds for which health says NOT_SERVING on SIGTERM while calls are still taken: as long as
            whoever sends calls here takes to see it.
        log_format: Lines for people, or JSON lines for machines.
        log_level: The least that is logged; debug has a line for each call.
        audit: The file to which writes and admin calls are appended, a JSON line each.
        metrics: Count calls for Prometheus, at /metrics of --http.
        otlp: The URL of the OTLP/HTTP collector that gets traces, such as http://127.0.0.1:4318.
        trace_ratio: How many of the calls that come without a trace of their own begin one, 0 to 1.
        config: A TOML file of settings.
        check: Check everything that can be checked without serving, print the settings and where each came from, and
            exit with 0 if they can be served, else with 1.
    """
    import asyncio

    quiet_grpc()

    from reidserve.server import Settings
    from reidserve.server import serve as serve_until_stopped
    from reidserve.server.telemetry.logs import start_logs

    settings = Settings(
        model=read_model(model),
        galleries=tuple(map(read_place, gallery)),
        precision=precision,
        device=device,
        threshold=threshold,
        index=kind,
        index_device=index_device,
        max_memory=max_memory,
        read_only=read_only,
        snapshots=snapshots,
        thumbnails=thumbnails,
        sources_root=sources_root,
        retain=retain,
        models_root=models_root,
        galleries_root=galleries_root,
        listen=listen,
        http=http,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        insecure=insecure,
        keys=keys,
        reflection=reflection,
        deadline=deadline,
        images_in_flight=images_in_flight,
        images_per_call=images_per_call,
        message_bytes=message_bytes,
        batch=batch,
        grace=grace,
        probe_period=probe_period,
        log_format=log_format,
        log_level=log_level,
        audit=audit,
        metrics=metrics,
        otlp=otlp,
        trace_ratio=trace_ratio,
    )
    if check:
        return _check(settings, json=json)
    start_logs(log_format, log_level)
    asyncio.run(serve_until_stopped(settings, on_ready=lambda ready: _tell(ready, settings, json=json)))
    return None


def _check(settings: "Settings", *, json: bool) -> int | None:
    """Say what would be served, where each setting came from, and what of it is wrong."""
    from reidserve.server.check import check_settings

    told = {name: (value, sources.found.get(name, "default")) for name, value in _shown(settings).items()}
    findings = list(check_settings(settings))
    holds = all(finding.fault is None for finding in findings)
    warn_lines([f"{found.what}: {found.fault}" for found in findings if found.fault is not None])
    if json:
        said = {name: {"value": value, "from": origin} for name, (value, origin) in told.items()}
        print_json({"settings": said, "checks": findings, "holds": holds})
        return None if holds else FAILED
    lines = {name: (_for_people(value), origin) for name, (value, origin) in told.items()}
    width, room = max(map(len, lines)), max(len(value) for value, _ in lines.values())
    print_lines([f"{name:<{width}}  {value:<{room}}  {origin}" for name, (value, origin) in lines.items()])
    print_lines(
        ["", *(f"{found.what:<{width}}  {found.fact if found.fault is None else 'WRONG'}" for found in findings)]
    )
    return None if holds else FAILED


def _for_people(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(value)
        case _:
            return str(value)


def _shown(settings: "Settings") -> dict[str, object]:
    """Each setting by its name, as it may be shown: without what is secret."""
    from reidserve.datasets import path_to_text
    from reidserve.server.settings import without_secrets

    shown: dict[str, object] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            value = path_to_text(value)
        elif field.name == "model":
            value = str(value)
        elif isinstance(value, tuple):
            value = [path_to_text(place) if isinstance(place, Path) else str(place) for place in value]
        elif field.name == "otlp" and value is not None:
            value = without_secrets(value)
        shown["gallery" if field.name == "galleries" else field.name.replace("_", "-")] = value
    return shown


def _tell(ready: "Ready", settings: "Settings", *, json: bool) -> None:
    """Say that the server answers, where, and with what."""
    from reidserve.datasets import path_to_text

    pipeline = ready.served.pipeline
    embedder, galleries = pipeline.embedder, pipeline.galleries
    entries = {name: len(opened.snapshot) for name, opened in galleries.items()}
    damaged = {name: len(opened.snapshot.damaged) for name, opened in galleries.items()}
    if json:
        print_json(
            {
                "listening": ready.address,
                "http": ready.http,
                "identity": embedder.contract.identity,
                "engine": embedder.engine,
                "unverified": embedder.unverified,
                "galleries": entries,
                "damaged": damaged,
                "threshold": pipeline.threshold,
            }
        )
        return
    model = path_to_text(settings.model) if isinstance(settings.model, Path) else str(settings.model)
    facts = {
        "listening": ready.address if ready.http is None else f"{ready.address}, HTTP at {ready.http}",
        "model": f"{model} {embedder.contract.identity[:12]} on {embedder.engine}"
        f"{' (unverified)' * embedder.unverified}",
        "galleries": ", ".join(
            f"{name} ({count} entries{f', {damaged[name]} damaged left out' * bool(damaged[name])})"
            for name, count in entries.items()
        ),
    }
    if settings.threshold is not None:
        facts["threshold"] = f"{pipeline.threshold} from {path_to_text(settings.threshold)}"
    print_facts(facts)


def main() -> None:
    """Run the command."""
    run(app)
