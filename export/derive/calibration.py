"""Calibration: what training crops say of a flavour, ranges by half of their identities and losses by the other."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from filecmp import cmp
from functools import cached_property
from math import inf, isnan
from pathlib import Path

import numpy as np
import onnx

from reidserve.datasets import JUNK, Crop, path_to_text
from reidserve.embed import Batch, Embedder, Image, read_image
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import DatasetError, EvaluationError, ExportError, ImageError
from reidserve.evaluate import embed_parts, evaluate
from reidserve.export.files import write_whole
from reidserve.export.flavours import (
    Make,
    Ranges,
    choose_kept,
    decode_ranges,
    encode_ranges,
    make_half,
    make_integer,
    measure_ranges,
    pick_calibration,
    rank_sensitivity,
)
from reidserve.export.flavours.operators import name_of

CALIBRATING = 256
"""Crops that ranges are taken from."""

JUDGING = 512
"""Crops that losses are measured on: whole identities, as many as fit."""

RANKING = 32
"""Crops that each operator's own share of the loss is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Training crops, and how much may be lost on them.

    Attributes:
        crops: of the training part alone.
        budget: points of mAP that may be lost on training identities that did not calibrate.
        seed: of which crops and identities are taken.
        cache: the folder that ranges are kept in, by what they were taken from.
    """

    crops: Sequence[Crop]
    budget: float
    seed: int
    cache: Path


@dataclass(frozen=True, slots=True)
class Halves:
    """Training crops in two parts without a common identity.

    Attributes:
        calibrating: what ranges and sensitivities are measured on.
        judging: what losses are measured on; empty where identities are not known.
    """

    calibrating: Sequence[Crop]
    judging: Sequence[Crop]


def halve(crops: Sequence[Crop], *, seed: int) -> Halves:
    """Identities drawn into two halves, the second cut to JUDGING crops; without labels all crops calibrate."""
    by_pid: dict[str, list[Crop]] = {}
    for crop in crops:
        if crop.pid is not None and crop.pid != JUNK:
            by_pid.setdefault(crop.pid, []).append(crop)
    if len(by_pid) < 2:
        return Halves(list(crops), [])
    pids = sorted(by_pid)
    drawn = [pids[place] for place in np.random.default_rng(seed).permutation(len(pids)).tolist()]
    first, second = drawn[: (len(drawn) + 1) // 2], drawn[(len(drawn) + 1) // 2 :]
    sizes = np.cumsum([len(by_pid[pid]) for pid in second])
    fitting = max(1, int(np.searchsorted(sizes, JUDGING, "right")))
    calibrating = set(first)
    return Halves(
        [crop for crop in crops if crop.pid in calibrating],
        [crop for pid in second[:fitting] for crop in by_pid[pid]],
    )


def check_apart(training: Sequence[Crop], verification: Sequence[Crop]) -> None:
    """See that no training crop is one that the flavour is verified on, by path or by its bytes.

    Raises:
        DatasetError: one is; what is measured on it would prove nothing.
    """
    paths = {crop.path.resolve() for crop in verification}
    by_size: dict[int, list[Path]] = {}
    for path in sorted(paths):
        by_size.setdefault(path.stat().st_size, []).append(path)
    for crop in training:
        path = crop.path.resolve()
        if path in paths or any(cmp(path, other, shallow=False) for other in by_size.get(path.stat().st_size, ())):
            raise DatasetError(
                f"{path_to_text(crop.path)} of --calibrate is among the images of --verify too: what was calibrated on "
                "proves nothing; calibrate on other images"
            )


def beyond_half(graph: onnx.ModelProto, ranges: Ranges) -> list[str]:
    """The operators that meet values or weights beyond float16, named by their first output.

    On ONNX Runtime's CPU, which computes float16 in float32, nothing would show it.
    """
    reach = {name: max(-low, high) for name, (low, high) in ranges.tensors.items()}
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            reach[tensor.name] = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0))
    beyond = {name for name, most in reach.items() if most > float(np.finfo(np.float16).max)}
    operators = (node for node in graph.graph.node if node.op_type != "Constant")
    return [name_of(node) for node in operators if not beyond.isdisjoint([*node.input, *node.output])]


class Loss:
    """What a graph loses on training identities: points of mAP, each image asked for among the others.

    Attributes:
        left_out: how many images could not be read.

    Raises:
        EvaluationError: no image can be read, or none has another that its camera does not drop.
    """

    def __init__(self, reference: Embedder, crops: Sequence[Crop]) -> None:
        self._contract = reference.contract
        self._crops = crops
        self._reference, self.left_out = self._score(reference)
        if isnan(self._reference):
            raise EvaluationError(
                f"of {len(crops)} training images none has a right answer among the others, such as one of its "
                "identity by another camera: what a flavour loses cannot be measured on them"
            )

    def __call__(self, graph: onnx.ModelProto) -> float:
        """Points of mAP that the graph loses, below 0 where it gains; infinity where it fails on an image."""
        session = OnnxSession(graph.SerializeToString())
        try:
            score, left_out = self._score(Embedder(self._contract, session))
        except EvaluationError:  # it fails on all of them
            return inf
        return 100 * (self._reference - score) if left_out == self.left_out else inf

    def _score(self, embedder: Embedder) -> tuple[float, int]:
        embedded, failures = embed_parts({"training": self._crops}, embedder)
        labelled = embedded["training"].labelled
        return evaluate(labelled, labelled).metrics.mAP, len(failures)


class Calibrator:
    """A graph and the training crops that say how it may be lowered.

    Attributes:
        remarks: what was found, a sentence each.
    """

    def __init__(self, reference: Embedder, graph: onnx.ModelProto, calibration: Calibration) -> None:
        halves = halve(calibration.crops, seed=calibration.seed)
        self._picked = pick_calibration(halves.calibrating, CALIBRATING, seed=calibration.seed)
        self._judging = halves.judging
        self._reference, self._graph, self._calibration = reference, graph, calibration
        self.remarks: list[str] = []

    @cached_property
    def ranges(self) -> Ranges:
        """How far values reach; taken from the cache where the very crops were seen by the very graph before."""
        path = self._calibration.cache / f"{self._key()}.json"
        with suppress(FileNotFoundError, ExportError):
            return decode_ranges(path.read_bytes(), self._graph)
        ranges = measure_ranges(self._graph, self._batches(), seed=self._calibration.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, encode_ranges(ranges))
        return ranges

    def half(self) -> tuple[onnx.ModelProto, Sequence[str]]:
        """The fp16 graph, and the operators that were kept in float32: of values beyond float16, and for the budget."""
        spared = beyond_half(self._graph, self.ranges)
        if spared:
            self.remarks.append(
                f"fp16: {len(spared)} operators meet values beyond float16 and stay in fp32: {', '.join(spared)}"
            )

        def make(kept: Collection[str]) -> onnx.ModelProto:
            return make_half(self._graph, kept=[*spared, *kept], ranges=self.ranges)

        graph, kept = self.choose(make, "fp16")
        return graph, list(dict.fromkeys([*spared, *kept]))

    def integer(self, *, signed: bool) -> tuple[onnx.ModelProto, Sequence[str]]:
        """The int8 graph, and the operators that were kept in float32 for it to stay within the budget."""

        def make(kept: Collection[str]) -> onnx.ModelProto:
            return make_integer(self._graph, self.ranges, signed=signed, kept=kept)

        return self.choose(make, "int8 for TensorRT" if signed else "int8 for CPUs")

    def choose(self, make: Make, what: str) -> tuple[onnx.ModelProto, Sequence[str]]:
        """The flavour that keeps the budget, and the operators that it kept in float32: as few as doubling finds.

        Raises:
            ExportError: the budget is not kept, however many stay.
        """
        graph = make(())
        if not self._judging:
            self.remarks.append(
                f"{what}: nothing is kept in fp32 for its sensitivity, since the training images have no labels to "
                "measure what is lost with"
            )
            return graph, ()
        lost = self._loss(graph)
        kept: Sequence[str] = ()
        budget = self._calibration.budget
        if lost > budget:
            batch = self._prepare(self._picked[:RANKING])
            chosen = choose_kept(rank_sensitivity(self._graph, make, batch), make, self._loss, budget=budget)
            graph, kept, lost = chosen.graph, chosen.kept, chosen.lost
        self.remarks.append(
            f"{what}: {lost:.2f} points of mAP lost on {len(self._judging)} training images that did not calibrate "
            f"({budget:g} may be), with {len(kept)} operators kept in fp32 for their sensitivity"
            + (f"; {self._loss.left_out} of them could not be read" if self._loss.left_out else "")
        )
        return graph, kept

    @cached_property
    def _loss(self) -> Loss:
        return Loss(self._reference, self._judging)

    def _batches(self) -> Iterator[Batch]:
        for start in range(0, len(self._picked), RANKING):
            yield self._prepare(self._picked[start : start + RANKING])

    def _prepare(self, crops: Sequence[Crop]) -> Batch:
        return np.stack([self._read(crop.path) for crop in crops])

    def _read(self, path: Path) -> Image:
        try:
            return self._reference.prepare(read_image(path))
        except ImageError as error:
            raise ImageError(f"{path_to_text(path)} cannot calibrate: {error}") from error

    def _key(self) -> str:
        """What ranges depend on: the graph, how crops are resized for it, and the crops in their order."""
        digest = hashlib.sha256(self._reference.contract.identity.encode())
        for crop in self._picked:
            digest.update(hashlib.sha256(crop.path.read_bytes()).digest())
        return digest.hexdigest()
