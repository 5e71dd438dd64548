"""Proof: what was made is run on every engine here, and held against the model on labelled crops."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from reidserve.datasets import Crop
from reidserve.embed import Artifact, Check, Device, Embedder, Precision
from reidserve.embed.canaries import Canaries
from reidserve.embed.engines import GRAPHS, available_devices, start_session
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import EmbeddingError, ExportError, ImageError, ParityError
from reidserve.export.derive.addition import SIGNED_ON_CPU, Addition
from reidserve.export.parity import DEFAULT_BOUNDS, Bounds, Candidate, Parity, measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What it is proven on, and what may be lost.

    Attributes:
        query: crops to search with.
        gallery: crops to search in.
        bounds: what each precision may lose.
        samples: draws of the bootstrap.
        seed: of these draws.
    """

    query: Sequence[Crop]
    gallery: Sequence[Crop]
    bounds: Mapping[Precision, Bounds] = field(default_factory=lambda: DEFAULT_BOUNDS)
    samples: int = 10_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Engine:
    """A file of an artifact that runs here.

    Attributes:
        name: what its figures are kept under.
        file: what it runs.
        embedder: it, running.
        deployed: whether a server would run it so, and find canaries of it.
    """

    name: str
    file: str
    embedder: Embedder
    deployed: bool = True


def start_engines(stage: Artifact, addition: Addition) -> list[Engine]:
    """Every engine here that runs what was added; of fp32, every engine but the reference.

    Raises:
        ExportError: there is none, or what was made does not run.
    """
    started = [*_deployed(stage, addition), *_signed(stage, addition)]
    if not started and addition.data:
        raise ExportError(f"no engine here runs {', '.join(addition.data)}: make it where it will run")
    return started


def with_canaries(canaries: Canaries, engines: Sequence[Engine], addition: Addition) -> Canaries:
    """The canaries with what each engine that will be served makes of them, less those of what is made anew.

    Raises:
        ExportError: an engine gives no embeddings.
    """
    kept = {name: rows for name, rows in canaries.embeddings.items() if not addition.makes_anew(name)}
    for engine in engines:
        try:
            rows = engine.embedder.embed_encoded(canaries.images)
        except (EmbeddingError, ImageError) as error:
            raise ExportError(f"{engine.file} is no embedder on {engine.name}: {error}") from error
        if engine.deployed:
            kept[engine.name] = rows.astype("<f4").tobytes()
    return msgspec.structs.replace(canaries, embeddings=kept)


def prove(
    reference: Candidate,
    candidates: Sequence[Candidate],
    verification: Verification,
    *,
    progress: Callable[[int, int], None],
) -> Parity:
    """Measure each candidate against the reference.

    Raises:
        ParityError: one of them is refused; the message says which and why, of the first.
        EvaluationError: the crops cannot be scored.
    """
    parity = measure(
        reference,
        candidates,
        verification.query,
        verification.gallery,
        bounds=verification.bounds,
        samples=verification.samples,
        seed=verification.seed,
        progress=progress,
    )
    if refusals := parity.refusals():
        more = f" (and {len(refusals) - 1} more do not pass)" if len(refusals) > 1 else ""
        raise ParityError(f"nothing was written: {refusals[0]}{more}", parity=parity)
    return parity


def start_reference(artifact: Artifact) -> Embedder:
    """model.onnx on ONNX Runtime's CPU, which was held to what was exported when it was."""
    return Embedder(artifact.contract, start_session(artifact, precision="fp32", device="cpu"))


def reference_of(embedder: Embedder) -> Candidate:
    """The reference as the gate wants it."""
    return Candidate(embedder.engine, "fp32", embedder)


def candidates_of(engines: Sequence[Engine], precision: Precision) -> list[Candidate]:
    """The engines as the gate wants them."""
    return [Candidate(engine.name, precision, engine.embedder) for engine in engines]


def checks_of(file: str, engines: Sequence[Engine], parity: Parity) -> tuple[Check, ...]:
    """What was found of one file, for each engine it ran on."""
    return tuple(parity.check(engine.name) for engine in engines if engine.file == file)


def _deployed(stage: Artifact, addition: Addition) -> Iterator[Engine]:
    for device in available_devices(addition.precision):
        file = _file_of(addition, device)
        if file is not None:
            session = start_session(stage, precision=addition.precision, device=device)
            yield Engine(session.engine, file, Embedder(stage.contract, session))


def _file_of(addition: Addition, device: Device) -> str | None:
    """What a device runs of what was added, or model.onnx where nothing was; None where it has nothing new to run."""
    if device == "tensorrt":
        return next(iter(addition.plans), None)
    graph = GRAPHS[addition.precision]
    is_new = graph in addition.data or (not addition.data and device != "cpu")
    return graph if is_new else None


def _signed(stage: Artifact, addition: Addition) -> Iterator[Engine]:
    for file, facts in addition.flavours.items():
        if facts.signed:
            session = OnnxSession(addition.data[file], device="cpu", precision=facts.precision)
            yield Engine(SIGNED_ON_CPU, file, Embedder(stage.contract, session), deployed=False)
