"""The contract: all that must be known to compute the same embedding again, carried with the model."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from reidserve.embed.images import FILTERS, ResizeFilter
from reidserve.errors import ArtifactError

MODEL_FILE = "model.onnx"
PARITY_FILE = "parity.json"
Precision = Literal["fp32", "fp16", "int8"]
"""The number format that most of a graph computes in."""

MAX_SIDE = 4096
MAX_DIM = 2**20


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the graph does to the uint8 RGB batch before the backbone: for people to read, never for code to apply.

    Attributes:
        mean: per channel of the colour order, in units of pixel / 255.
        std: per channel of the colour order, in units of pixel / 255.
        colour: the channel order the backbone was trained on.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    colour: Literal["rgb", "bgr"]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights came from.

    Attributes:
        kind: "onnx" for an adopted graph.
        sha256: of the file that was exported.
        dialect: the project whose checkpoint it was; None for an adopted graph.
    """

    kind: Literal["onnx", "checkpoint"]
    sha256: str
    dialect: str | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of the architecture; None where an adopted graph does not tell.

    Attributes:
        backbone: such as "resnet50_ibn_a".
        neck: such as "bnneck".
        pooling: such as "average" or "gem".
        feature: whether the embedding is taken before or after the neck.
        flip: whether the embedding averages the crop and its mirror image.
    """

    backbone: str | None = None
    neck: str | None = None
    pooling: str | None = None
    feature: Literal["before_neck", "after_neck"] | None = None
    flip: bool = False


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the rank-parity gate found of a flavour on one engine, against the reference it was held to.

    Attributes:
        engine: flavour and engine, such as "int8/openvino-cpu".
        data: sha256 of the labels and file names that were scored.
        queries: how many queries were scored.
        cosine: the smallest cosine of an image's two embeddings.
        change: of mAP, in points (0..100); None where there were no labels and rankings alone were compared.
        low: lower end of the change's 95 % interval, in points.
        high: upper end of it.
        bound: points of mAP that could be lost.
    """

    engine: str
    data: str
    queries: int
    cosine: float
    change: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None


class Flavour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same network in another precision, as a graph of its own beside model.onnx.

    Attributes:
        precision: what most of it computes in.
        signed: whether activations are signed and symmetric, as TensorRT wants them; of int8 alone.
        kept: names of the operators that were left in float32 because they proved sensitive.
        calibration: sha256 of the images that ranges were taken from; of int8 alone.
        unverified: whether it was written without passing the gate.
        checks: what the gate found, for each engine it ran on.
    """

    precision: Literal["fp16", "int8"]
    signed: bool = False
    kept: tuple[str, ...] = ()
    calibration: str | None = None
    unverified: bool = False
    checks: tuple[Check, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the graphs compiled by TensorRT, for one GPU.

    Attributes:
        graph: the file it was compiled from.
        precision: of that graph.
        gpu: the GPU's name.
        capability: its compute capability, such as "9.0".
        driver: version of the CUDA driver.
        tensorrt: version of TensorRT.
        batches: batch sizes that buffers are made for; the largest is the largest it takes.
        unverified: whether it was written without passing the gate.
        checks: what the gate found.
    """

    graph: str
    precision: Precision
    gpu: str
    capability: str
    driver: str
    tensorrt: str
    batches: tuple[int, ...]
    unverified: bool = False
    checks: tuple[Check, ...] = ()


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's promise: a uint8 RGB crop resized like this gives a float32 unit vector of that many dimensions.

    Attributes:
        format: version of this structure.
        height: input height, pixels.
        width: input width, pixels.
        resize: the Pillow filter that resizes a crop to the input size.
        dim: dimensions of an embedding.
        preprocessing: what the graph does inside.
        network: what is known of the architecture.
        source: where the weights came from.
        files: sha256 of every other file of the artifact, by name.
        flavours: other precisions of the graph, by file name; they lie beside it and leave the identity as it is.
        plans: graphs compiled for one GPU, by file name.
    """

    format: Literal[1] = 1
    height: int
    width: int
    resize: ResizeFilter
    dim: int
    preprocessing: Preprocessing
    network: Network
    source: Source
    files: Mapping[str, str]
    flavours: Mapping[str, Flavour] = {}
    plans: Mapping[str, Plan] = {}

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not 1 <= side <= MAX_SIDE:
                raise ArtifactError(f"{name} must be 1 to {MAX_SIDE} pixels, got {side}")
        if self.resize not in FILTERS:
            raise ArtifactError(f"resize must be one of {', '.join(FILTERS)}, got {self.resize!r}")
        if not 1 <= self.dim <= MAX_DIM:
            raise ArtifactError(f"dim must be 1 to {MAX_DIM}, got {self.dim}")
        if MODEL_FILE not in self.files:
            raise ArtifactError(f"files must name {MODEL_FILE}, got {sorted(self.files)}")
        if strangers := sorted({*self.flavours, *self.plans} - set(self.files)):
            raise ArtifactError(f"flavours and plans must be among the files, {', '.join(strangers)} is not")

    @property
    def identity(self) -> str:
        """The sha256 that names the embedding function: equal identities give comparable embeddings."""
        facts = {
            "model": self.files[MODEL_FILE],
            "height": self.height,
            "width": self.width,
            "resize": self.resize,
        }
        return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def encode_contract(contract: Contract) -> bytes:
    """The contract as indented JSON with sorted keys: equal contracts are equal bytes."""
    return msgspec.json.format(msgspec.json.encode(contract, order="sorted"), indent=2) + b"\n"


def decode_contract(data: bytes) -> Contract:
    """Read a contract strictly.

    Raises:
        ArtifactError: not JSON, a field too many or too few, or a value out of range.
    """
    try:
        return msgspec.json.decode(data, type=Contract)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise ArtifactError(f"the contract does not read: {error}") from error
