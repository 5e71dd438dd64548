"""The server's model, as values."""

from dataclasses import dataclass

from reidserve.proto.reid.v1 import reid_pb2


@dataclass(frozen=True, slots=True)
class Model:
    """What embeds.

    Attributes:
        identity: sha256 that names the embedding function.
        engine: flavour and engine, such as "fp32/onnxruntime-cpu".
        unverified: the engine was not held to fp32 on data: rankings may be worse than the model's.
    """

    identity: str
    engine: str
    unverified: bool


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the model that serves.

    Attributes:
        model: identity and engine.
        height: of its input, pixels.
        width: of its input, pixels.
        dim: dimensions of an embedding.
        backbone: what its artifact says it was trained as; None where it says nothing.
        threshold: the calibrated threshold; None where the server has none.
        parity_json: what the rank-parity gate measured of this engine's flavour; None where nothing did.
        reloads: how many times another was put in place of the first.
    """

    model: Model
    height: int
    width: int
    dim: int
    backbone: str | None
    threshold: float | None
    parity_json: str | None
    reloads: int


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A change of models.

    Attributes:
        before: what served before.
        after: what serves now.
        seconds: from the call to the change.
    """

    before: Model
    after: Model
    seconds: float


def read_model(model: reid_pb2.Model) -> Model:
    """What embeds."""
    return Model(model.identity, model.engine, model.unverified)


def read_facts(response: reid_pb2.GetModelResponse) -> ModelFacts:
    """What is known of the model that serves."""
    return ModelFacts(
        read_model(response.model),
        response.height,
        response.width,
        response.dim,
        response.backbone or None,
        response.threshold if response.HasField("threshold") else None,
        response.parity_json or None,
        response.reloads,
    )


def read_reloaded(response: reid_pb2.ReloadResponse) -> Reloaded:
    """A change of models."""
    return Reloaded(read_model(response.before), read_model(response.after), response.seconds)
