"""Embedding: every flavour on every engine here, by batch size, beside torch eager and the machine's own ceilings.

    python -P benchmarks/artifact.py [--quick] [--model FOLDER] [--checkpoint FILE] [--batches 1,8,32]

Without --model a ResNet-50-IBN-a is exported whose norms have the statistics of drawn crops, as a trained network's
have those of its set; fp16 and int8 are made from it, int8 with ranges of other drawn crops. With --model that folder's
own flavours are timed, with --checkpoint torch eager beside them. An embedder takes the uint8 batch and gives unit
embeddings, in torch too. Contenders take turns, so that a slow moment of the machine hits all; each warms before it is
timed. Ratios are medians turn by turn, absolute times only for orientation.

What is timed must be right: embeddings have at least the stated cosine with those of ONNX Runtime in fp32, and an
image's differs by no more than its engine's bound alone, among seven others and in another order.

FLOPs are those of convolutions and matrix products, counted in model.onnx. Beside them stand the best square products
of each engine's own library and of NumPy's memory copies (benchmarks/machine.py), in the same run. From both, operator
by operator, comes the least time a batch can take: its products at the peak, or its tensors read and written once at
the bandwidth of a copy of that size, whichever is longer. Peaks are of processors; on a GPU there are rates alone.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.embed import (
    Artifact,
    Batch,
    Contract,
    Embedder,
    Flavour,
    Precision,
    Preprocessing,
    decode,
    read_artifact,
    resize,
)
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.contract import MODEL_FILE, encode_contract
from reidserve.embed.cores import cores
from reidserve.embed.engines import BATCH_BOUNDS, available_devices, start_session
from reidserve.embed.onnx_session import OnnxSession
from reidserve.export.checkpoints import Checkpoint, Feed, read_checkpoint, write_checkpoint
from reidserve.export.convert import Feeding, wrap
from reidserve.export.convert.feeding import feed_by_hand
from reidserve.export.convert.from_checkpoint import export_checkpoint, trace
from reidserve.export.flavours.half import make_half
from reidserve.export.flavours.integer import make_integer
from reidserve.export.flavours.ranges import measure_ranges
from reidserve.export.model import Network, build_network, parse_architecture
from reidserve.export.model.resnet import Block

BOUNDED_BATCH = 8
INT8_OVER_FP32 = 3.0
"""Least images/s of the best int8 on a processor over those of ONNX Runtime in fp32."""
FP32_OVER_EAGER = 1.6
"""Least images/s of the best engine in fp32 on a processor over those of torch eager."""

COSINES: Mapping[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.95}
"""Least cosine of an image's embedding with the one by REFERENCE."""

REFERENCE, EAGER = "fp32/onnxruntime-cpu", "fp32/torch-cpu"
ONE_THREAD = f"{EAGER}, 1 thread"
"""Beside anything else that runs, threads of torch that wait for each other are slower than one."""
UNFOLDED = f"{REFERENCE}, unfolded"

BRANCH = 0.1
"""How much of its branch a block adds: of whole branches, fifty layers of random weights turn rounding into noise."""

IMAGES_A_TURN = 16
_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)

BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}

Floats = NDArray[np.float32]
Figures = dict[str, Any]
Embed = Callable[[Batch], Floats]


@dataclass(frozen=True, slots=True)
class Operator:
    """A convolution or matrix product of a graph.

    Attributes:
        flops: for one image, a multiplication and an addition counted as two.
        activations: numbers it reads and writes for one image.
        weights: numbers it reads whatever the batch.
    """

    flops: int
    activations: int
    weights: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine can do at most.

    Attributes:
        peaks: FLOP/s of a square product, by precision and library.
        copies: bytes/s of a copy, by the bytes it reads and writes.
    """

    peaks: Mapping[str, float]
    copies: Mapping[int, float]

    def peak(self, precision: str) -> float:
        """The best of any library in that precision, FLOP/s."""
        return max(rate for engine, rate in self.peaks.items() if engine.startswith(f"{precision}/"))

    def bandwidth(self, size: float) -> float:
        """Of a copy of the next larger size that was measured, bytes/s."""
        return self.copies[min((step for step in self.copies if step >= size), default=max(self.copies))]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--quick", action="store_true", help="seconds: ResNet-18-IBN-a at 64x32, no bounds on ratios"
    )
    arguments.add_argument("--model", type=Path, metavar="FOLDER", help="an artifact, with the flavours it has")
    arguments.add_argument("--checkpoint", type=Path, metavar="FILE", help="what it was exported from, for torch")
    arguments.add_argument("--batches", metavar="N,N", help="1,8,32; with --quick 1,8")
    arguments.add_argument("--rounds", type=int, help="turns of each contender (15; 1 with --quick)")
    asked = arguments.parse_args()
    quick = bool(asked.quick)
    sizes = [int(size) for size in (asked.batches or ("1,8" if quick else "1,8,32")).split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        crops = draw_crops(Path(scratch) / "crops", max(16, *sizes))
        checkpoint = read_checkpoint(asked.checkpoint) if asked.checkpoint else None
        if asked.model is None:
            checkpoint = checkpoint or make_checkpoint(Path(scratch) / "made.safetensors", crops[0], quick=quick)
            artifact = make_artifact(checkpoint, Path(scratch) / "model", crops[0])
        else:
            artifact = read_artifact(asked.model)
            if checkpoint and artifact.contract.network.flip:
                arguments.error(f"{asked.model} averages mirror images and torch would not: leave --checkpoint out")
        batch = resized(crops[1], artifact.contract)
        contenders = {**embedders(artifact), **(in_torch(checkpoint, artifact) if checkpoint else {})}
        report = compare(contenders, artifact, batch, sizes, rounds=asked.rounds or (1 if quick else 15), quick=quick)
    print(json.dumps({"name": "artifact", **report, "versions": versions()}))
    return 0 if report["holds"] else 1


def versions() -> dict[str, str]:
    named = ("reidserve", "numpy", "onnxruntime", "onnx", "torch")
    return {name: version(name) for name in named} | (
        {"openvino": version("openvino")} if "openvino" in available_devices() else {}
    )


def compare(
    contenders: Mapping[str, Embed], artifact: Artifact, batch: Batch, sizes: Sequence[int], *, rounds: int, quick: bool
) -> Figures:
    """Check every contender, then time them, and hold the ratios against their bounds."""
    right, checks = check(contenders, batch)
    ceilings = read_ceilings(quick=quick)
    operators = operators_of(onnx.load(artifact.folder / MODEL_FILE))
    turns = Turns(contenders, batch, sizes, rounds)
    rows = [
        {**turns.figures(name, size), **place_under(ceilings, operators, name, size, turns.seconds(name, size))}
        for name in contenders
        for size in sizes
    ]
    ratios = ratios_of(turns, BOUNDED_BATCH if BOUNDED_BATCH in sizes else sizes[-1])
    return {
        "holds": right and (quick or within_bounds(ratios)),
        "quick": quick,
        "network": artifact.contract.network.backbone,
        "input": f"{artifact.contract.height}x{artifact.contract.width}",
        "GFLOP_an_image": round(sum(operator.flops for operator in operators) / 1e9, 3),
        "threads": cores(),
        "rounds": rounds,
        **ratios,
        "checks": checks,
        "peak_GFLOP_per_second": {engine: round(rate / 1e9) for engine, rate in ceilings.peaks.items()},
        "copy_GB_per_second": {f"{size // 10**6} MB": round(rate / 1e9, 1) for size, rate in ceilings.copies.items()},
        "rows": rows,
    }


def ratios_of(turns: "Turns", size: int) -> Figures:
    """Images/s over images/s at one batch size; what cannot be said of these contenders is left out."""
    names = turns.names
    int8 = {name: turns.ratio(name, REFERENCE, size) for name in names if is_of_processor(name, "int8")}
    fp32 = {
        name: min(turns.ratio(name, torch, size) for torch in (EAGER, ONE_THREAD))
        for name in names
        if EAGER in names and is_of_processor(name, "fp32")
    }
    ratios: Figures = {"ratios_at_batch": size} | best(int8, "int8", over="fp32") | best(fp32, "fp32", over="eager")
    if UNFOLDED in names:
        ratios["folded_over_unfolded"] = turns.ratio(REFERENCE, UNFOLDED, size)
    return ratios


def best(ratios: Mapping[str, float], what: str, *, over: str) -> Figures:
    """The largest ratio and whose it is; nothing where there is none."""
    if not ratios:
        return {}
    return {f"{what}_over_{over}": max(ratios.values()), f"best_{what}": max(ratios, key=lambda name: ratios[name])}


def is_of_processor(name: str, precision: Precision) -> bool:
    """Whether a contender is an engine of this precision on the CPU; torch is none."""
    return name.startswith(f"{precision}/") and name.endswith("-cpu") and name != EAGER


def within_bounds(ratios: Figures) -> bool:
    """Whether what was measured of the promised ratios is what was promised."""
    bounds = {"int8_over_fp32": INT8_OVER_FP32, "fp32_over_eager": FP32_OVER_EAGER}
    return all(ratios[name] >= bound for name, bound in bounds.items() if name in ratios)


# The network and its flavours.


def draw_crops(folder: Path, count: int) -> tuple[list[bytes], list[bytes]]:
    """Encoded crops to learn statistics and ranges from, and as many of other persons to embed."""
    people = -(-count // 4)
    spec = SynthSpec(train_identities=people, test_identities=people, cameras=2, images_per_camera=2, distractors=0)
    write_dataset(folder, spec)
    train, test = (sorted(folder.glob(f"{part}/*.jpg"))[:count] for part in ("bounding_box_train", "bounding_box_test"))
    return [path.read_bytes() for path in train], [path.read_bytes() for path in test]


def resized(crops: Iterable[bytes], to: Contract | Feeding) -> Batch:
    height, width, chosen = to.height, to.width, to.resize
    return np.stack([resize(decode(crop), height=height, width=width, resize_filter=chosen) for crop in crops])


def make_checkpoint(path: Path, crops: Sequence[bytes], *, quick: bool) -> Checkpoint:
    """A network with seeded weights, and in its norms seeded scales and the statistics of the crops."""
    feed = Feed(height=64, width=32) if quick else Feed(height=256, width=128)
    feeding = feeding_of(feed)
    # Training mode, which takes the statistics, needs a classifier.
    architecture = parse_architecture("resnet18_ibn_a" if quick else "resnet50_ibn_a", classes=2)
    network = build_network(architecture, seed=0)
    pixels = feed_by_hand(resized(crops, feeding), feeding.preprocessing)
    write_checkpoint(path, settled(network, torch.from_numpy(pixels)), feed.to_metadata())
    return read_checkpoint(path)


def feeding_of(feed: Feed | None) -> Feeding:
    """How a checkpoint says it was fed, at 256x128 where it does not say."""
    feed = feed or Feed()
    preprocessing = Preprocessing(mean=feed.mean, std=feed.std, colour=feed.colour)
    return Feeding(height=feed.height or 256, width=feed.width or 128, resize=feed.resize, preprocessing=preprocessing)


def settled(network: Network, pixels: torch.Tensor) -> Network:
    """The network in evaluation mode, its norms with seeded scales and the statistics of these pixels."""
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in network.modules() if isinstance(module, _NORMS)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # a plain mean over the batches
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
            if norm.bias.requires_grad:
                norm.bias.copy_(0.1 * torch.randn(norm.bias.shape, generator=generator))
        for block in [module for module in network.modules() if isinstance(module, Block)]:
            *_, closing = (norm for norm in block.children() if isinstance(norm, torch.nn.BatchNorm2d))
            closing.weight.mul_(BRANCH)
        network.train()
        for start in range(0, len(pixels), 16):
            network(pixels[start : start + 16])
    return network.eval()


def make_artifact(checkpoint: Checkpoint, folder: Path, crops: Sequence[bytes]) -> Artifact:
    """The checkpoint exported, with fp16 and int8 beside it that no gate has seen."""
    export_checkpoint(checkpoint, folder, feeding_of(checkpoint.feeding))
    contract = read_artifact(folder).contract
    graph = onnx.load(folder / MODEL_FILE)
    ranges = measure_ranges(graph, np.array_split(resized(crops, contract), 4))
    flavours: dict[str, tuple[Flavour, onnx.ModelProto]] = {
        "model.fp16.onnx": (Flavour(precision="fp16", unverified=True), make_half(graph)),
        "model.int8.onnx": (Flavour(precision="int8", unverified=True), make_integer(graph, ranges, signed=False)),
    }
    files = dict(contract.files)
    for name, (_, made) in flavours.items():
        data = made.SerializeToString(deterministic=True)
        (folder / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()
    listed = {name: flavour for name, (flavour, _) in flavours.items()}
    (folder / CONTRACT_FILE).write_bytes(
        encode_contract(msgspec.structs.replace(contract, files=files, flavours=listed))
    )
    return read_artifact(folder)


# The contenders.


def embedders(artifact: Artifact) -> dict[str, Embed]:
    """Each flavour and plan on each engine here that runs it, by the engine's name."""
    contract = artifact.contract
    planned = {plan.precision for plan in contract.plans.values()}
    precisions: set[Precision] = {"fp32", *(flavour.precision for flavour in contract.flavours.values())}
    sessions = [
        start_session(artifact, precision=precision, device=device)
        for precision in BYTES
        for device in available_devices(precision)
        if precision in (planned if device == "tensorrt" else precisions)
    ]
    return {session.engine: Embedder(contract, session).embed for session in sessions}


def in_torch(checkpoint: Checkpoint, artifact: Artifact) -> dict[str, Embed]:
    """The network in torch eager, and its graph as torch writes it."""
    contract = artifact.contract
    traced = wrap(
        trace(checkpoint.network, height=contract.height, width=contract.width),
        feature="feature",
        height=contract.height,
        width=contract.width,
        dim=contract.dim,
        preprocessing=contract.preprocessing,
    )
    return {
        EAGER: eager(checkpoint.network, contract.preprocessing, threads=cores()),
        ONE_THREAD: eager(checkpoint.network, contract.preprocessing, threads=1),
        UNFOLDED: Embedder(contract, OnnxSession(traced.SerializeToString())).embed,
    }


def eager(network: Network, preprocessing: Preprocessing, *, threads: int) -> Embed:
    """What the graph computes, in torch: uint8 crops to unit embeddings."""
    mean, std = (torch.tensor(three).reshape(3, 1, 1) for three in (preprocessing.mean, preprocessing.std))
    channels = [0, 1, 2] if preprocessing.colour == "rgb" else [2, 1, 0]

    @torch.inference_mode()
    def embed(batch: Batch) -> Floats:
        torch.set_num_threads(threads)
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)[:, channels].to(torch.float32) / 255
        embeddings: Floats = torch.nn.functional.normalize(network((pixels - mean) / std)).numpy()
        return embeddings

    return embed


def check(contenders: Mapping[str, Embed], batch: Batch) -> tuple[bool, dict[str, Figures]]:
    """By contender the least cosine with REFERENCE and what the rest of a batch changes; whether all is in bounds."""
    expected = contenders[REFERENCE](batch)
    # Where other crops' embeddings were as near, a cosine would show nothing.
    strangers = np.vecdot(expected, np.roll(expected, len(expected) // 2, axis=0))
    right = bool(strangers.max() < min(COSINES.values()))
    order = np.random.default_rng(0).permutation(8)
    found = dict[str, Figures]()
    for name, embed in contenders.items():
        together = embed(batch[:8])
        alone = np.concatenate([embed(image[np.newaxis]) for image in batch[:8]])
        moved = max(np.abs(alone - together).max(), np.abs(embed(batch[:8][order]) - together[order]).max())
        cosine = float(np.vecdot(embed(batch), expected).min())
        found[name] = {"cosine": round(cosine, 6), "batch_changes": float(f"{moved:.2g}")}
        # torch promises nothing of batches
        bound = BATCH_BOUNDS.get(name.partition(",")[0], np.inf)
        right = right and cosine >= COSINES[precision_of(name)] and bool(moved <= bound)
    return right, found


def precision_of(name: str) -> Precision:
    (precision,) = (precision for precision in BYTES if name.startswith(f"{precision}/"))
    return precision


class Turns:
    """Seconds of every contender at every batch size, taken in turn; the first turn warms.

    In its turn a contender runs once unwatched at each size: its threads wake, and caches hold its weights again.

    Attributes:
        names: of the contenders.
    """

    def __init__(self, contenders: Mapping[str, Embed], batch: Batch, sizes: Sequence[int], rounds: int) -> None:
        self.names = list(contenders)
        self._seconds: dict[tuple[str, int], list[list[float]]] = {
            (name, size): [] for name in contenders for size in sizes
        }
        console = Console(stderr=True)
        for turn in track(range(rounds + 1), "embedding", console=console, disable=not console.is_terminal):
            for name, embed in contenders.items():
                for size in sizes:
                    times = [timed(embed, batch[:size]) for _ in range(1 + -(-IMAGES_A_TURN // size))]
                    if turn:
                        self._seconds[name, size].append(times[1:])

    def seconds(self, name: str, size: int) -> float:
        """The median of all calls."""
        return median(self._all(name, size))

    def ratio(self, name: str, other: str, size: int) -> float:
        """How many times as fast as the other: the median of the turns' ratios."""
        mine, others = self._seconds[name, size], self._seconds[other, size]
        return round(median(median(b) / median(a) for a, b in zip(mine, others, strict=True)), 3)

    def figures(self, name: str, size: int) -> Figures:
        """Latency and rate, and how many times the rates of torch eager and of ONNX Runtime in fp32."""
        calls, seconds = self._all(name, size), self.seconds(name, size)
        return {
            "engine": name,
            "batch": size,
            "calls": len(calls),
            "p50_ms": round(1000 * seconds, 2),
            "p99_ms": round(1000 * float(np.quantile(calls, 0.99)), 2),
            "images_per_second": round(size / seconds, 1),
            "over_eager": self.ratio(name, EAGER, size) if EAGER in self.names else None,
            "over_fp32": self.ratio(name, REFERENCE, size),
        }

    def _all(self, name: str, size: int) -> list[float]:
        return [seconds for turn in self._seconds[name, size] for seconds in turn]


def timed(embed: Embed, batch: Batch) -> float:
    start = time.perf_counter()
    embed(batch)
    return time.perf_counter() - start


# The roof.


def operators_of(model: onnx.ModelProto) -> list[Operator]:
    """The convolutions and matrix products of a graph, sized by the shapes that follow from a batch of one."""
    graph = onnx.ModelProto.FromString(model.SerializeToString())
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    weights = {tensor.name for tensor in inferred.initializer}
    return [
        Operator(
            flops=2 * prod(shapes[node.output[0]]) * reduced(node, shapes),
            activations=sum(prod(shapes[name]) for name in [*node.input, *node.output] if name not in weights),
            weights=sum(prod(shapes[name]) for name in node.input if name in weights),
        )
        for node in inferred.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
    ]


def reduced(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many products are added up for one number of the output."""
    if node.op_type == "Conv":
        return prod(shapes[node.input[1]][1:])  # (channels out, channels in / groups, height, width)
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return shapes[node.input[0]][-2 if turned else -1]


def place_under(ceilings: Ceilings, operators: Sequence[Operator], name: str, batch: int, seconds: float) -> Figures:
    """How near a time comes to the peak and to the least time possible, and which ceiling most of that lies under."""
    if not name.partition(",")[0].endswith("-cpu"):
        return {}
    precision = precision_of(name)
    peak, size = ceilings.peak(precision), BYTES[precision]
    flops = batch * sum(operator.flops for operator in operators)
    moved = [size * (batch * operator.activations + operator.weights) for operator in operators]
    computing = [batch * operator.flops / peak for operator in operators]
    moving = [count / ceilings.bandwidth(count) for count in moved]
    least = sum(map(max, computing, moving))
    under_bandwidth = sum(b for a, b in zip(computing, moving, strict=True) if b > a)
    return {
        "GFLOP_per_second": round(flops / seconds / 1e9, 1),
        "of_peak": round(flops / seconds / peak, 3),
        "FLOP_a_byte": round(flops / sum(moved), 1),
        "of_roof": round(least / seconds, 3),
        "roof": "bandwidth" if under_bandwidth > least / 2 else "arithmetic",
    }


def read_ceilings(*, quick: bool) -> Ceilings:
    """What benchmarks/machine.py measures, now."""
    child = [sys.executable, "-P", str(Path(__file__).with_name("machine.py")), *(["--quick"] if quick else [])]
    machine = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    return Ceilings(
        {engine: 1e9 * rate for engine, rate in machine["product_GFLOP_per_second"].items()},
        {int(size) * 10**6: 1e9 * rate for size, rate in machine["copy_GB_per_second"].items()},
    )


if __name__ == "__main__":
    sys.exit(main())
