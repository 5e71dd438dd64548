"""What this machine can do at most: the ceilings that the other benchmarks are held against.

    python -P benchmarks/machine.py [--quick]

Bandwidth is taken twice: by copies, each core one of its own, of several sizes that lie in its caches or in memory
(bytes are those read and those written); and by one product of a large matrix with a vector, which reads each number
once, as a search does. Arithmetic is square matrix products, one of another, by NumPy's BLAS, by torch and by each
engine's own library in each precision, in turn and with the threads that an embedder gets; int8 as in an int8 flavour:
uint8 rows, int8 weights, requantised. A ceiling is the best of several rounds. What is timed must be right: copies and
products of whole numbers to the bit, products of the engines within the rounding of their precision.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from reidserve.embed import Precision, Session
from reidserve.embed.engines import available_devices
from reidserve.embed.onnx_session import OnnxSession

COPIES_MB = (1, 4, 16, 64, 1024)
"""Bytes that all cores together read and write in one turn, in 10^6."""

COPIED = 2e9
"""Bytes that a round of copies moves at least."""

CHAINED = 4
"""Products in one graph, so that what goes in and out of it weighs little."""

STEP, MIDDLE = 1 / 32, 128
"""What one step of the uint8 numbers of a chain is worth, and which of them is zero."""

WITHIN: Mapping[Precision, float] = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.02}
"""What rounding may change, as a share of the largest number; of int8's 256 steps it is five."""

Figures = dict[str, Any]
Floats = NDArray[np.float32]
Matrix = TypeVar("Matrix", Floats, torch.Tensor)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="a few seconds: smaller matrices, fewer rounds")
    quick = arguments.parse_args().quick
    rounds = 2 if quick else 10
    copying, copied = measure_copying([size for size in COPIES_MB if not quick or size <= 64], rounds)
    reading, read = measure_reading(8_192 if quick else 131_072, rounds)
    multiplying, multiplied = measure_multiplying(512 if quick else 2048, rounds // 2)
    holds = copied and read and multiplied
    report = {
        "name": "machine",
        "holds": holds,
        "quick": quick,
        **describe(),
        "copy_GB_per_second": copying,
        "read_GB_per_second": reading,
        "product_GFLOP_per_second": multiplying,
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "torch")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def describe() -> Figures:
    """The processor, its cores as this process may use them, caches and memory, as Linux tells them."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = dict(line.partition(":")[::2] for line in facts if ":" in line)
    fields = {name.strip(): value.strip() for name, value in told.items()}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8") if flag in flags],
        "caches": caches(),
        "memory_GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
    }


def caches() -> dict[str, str]:
    """Sizes of the first core's caches by level, such as {"L2": "2048K"}; instructions' left out."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def measure_copying(sizes_mb: list[int], rounds: int) -> tuple[dict[str, float], bool]:
    """GB/s by size in MB, every core copying its share again and again, and whether the copies are equal."""
    cores = len(os.sched_getaffinity(0))
    rates, right = dict[str, float](), True
    with ThreadPoolExecutor(cores) as pool:
        for size in sizes_mb:
            count = size * 10**6 // (2 * 4 * cores)
            again = max(1, round(COPIED / (size * 10**6)))
            shares = [Share(np.full(count, core + 1, np.float32), np.zeros(count, np.float32)) for core in range(cores)]
            turns = partial(copy_all, pool, shares, again)
            rates[str(size)] = round(size * 1e6 * again / best({"copies": turns}, rounds)["copies"] / 1e9, 1)
            right = right and all(np.array_equal(share.source, share.target) for share in shares)
    return rates, right


@dataclass(frozen=True, slots=True)
class Share:
    """What one core copies, and where to."""

    source: Floats
    target: Floats

    def copy(self, again: int) -> None:
        """Copy it so many times."""
        for _ in range(again):
            np.copyto(self.target, self.source)


def copy_all(pool: ThreadPoolExecutor, shares: Sequence[Share], again: int) -> None:
    for running in [pool.submit(share.copy, again) for share in shares]:
        running.result()


def measure_reading(rows: int, rounds: int) -> tuple[float, bool]:
    """GB/s of a product of a matrix (rows, 2048) with a vector, and whether it is the one of whole numbers."""
    rng = np.random.default_rng(0)
    # So small that float32 adds their products exactly.
    matrix, vector = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((rows, 2048), (2048,)))
    seconds = best({"product": lambda: np.matmul(matrix, vector)}, rounds)["product"]
    expected = matrix[:64].astype(np.int64) @ vector.astype(np.int64)
    return round(matrix.nbytes / seconds / 1e9, 1), bool(np.array_equal(np.matmul(matrix, vector)[:64], expected))


def measure_multiplying(side: int, rounds: int) -> tuple[dict[str, float], bool]:
    """GFLOP/s by precision and library, and whether all products are right."""
    chains = {precision: Chain(precision, side) for precision in WITHIN}
    plain = chains["fp32"]
    works: dict[str, Callable[[], NDArray[Any] | torch.Tensor]] = {
        "fp32/numpy-cpu": partial(multiply, plain.rows, plain.weights),
        "fp32/torch-cpu": partial(multiply, torch.from_numpy(plain.rows), torch.from_numpy(plain.weights)),
    }
    for precision, chain in chains.items():
        for session in sessions(chain.model().SerializeToString(), precision):
            works[session.engine] = partial(session, chain.given)
    right = all(chains[precision_of(engine)].accepts(np.asarray(work())) for engine, work in works.items())
    seconds = best(works, rounds)
    return {engine: round(2 * side**3 * CHAINED / seconds[engine] / 1e9) for engine in works}, right


def sessions(model: bytes, precision: Precision) -> list[Session]:
    """The graph on every engine here that runs on the processor."""
    found: list[Session] = [OnnxSession(model, precision=precision)]
    if "openvino" in available_devices():
        from reidserve.embed.openvino_session import OpenVinoSession

        found.append(OpenVinoSession(model, precision=precision))
    return found


def precision_of(engine: str) -> Precision:
    (precision,) = (precision for precision in WITHIN if engine.startswith(f"{precision}/"))
    return precision


def multiply(rows: Matrix, weights: Matrix) -> Matrix:
    for _ in range(CHAINED):
        rows = rows @ weights
    return rows


class Chain:
    """Rows times weights (side, side), the result times the weights, and so on, in one precision.

    Attributes:
        rows: what is multiplied, float32.
        weights: float32.
        given: the rows in the precision of the chain.
    """

    def __init__(self, precision: Precision, side: int) -> None:
        rng = np.random.default_rng(0)
        self._precision, self._side = precision, side
        self.rows: Floats = rng.standard_normal((side, side), dtype=np.float32)
        self.weights: Floats = rng.standard_normal((side, side), dtype=np.float32) / np.float32(np.sqrt(side))
        self._weight_step = np.float32(4 / 127 / np.sqrt(side))
        self._whole = np.clip(np.rint(self.weights / self._weight_step), -127, 127).astype(np.int8)
        given: Mapping[Precision, NDArray[Any]] = {
            "fp32": self.rows,
            "fp16": self.rows.astype(np.float16),
            "int8": whole(self.rows),
        }
        self.given = given[precision]

    def accepts(self, product: NDArray[Any]) -> bool:
        """Whether the first rows of a product are those of float64, or of whole numbers, within rounding."""
        some: NDArray[Any] = self.given[:8].astype(np.float64)
        for _ in range(CHAINED):
            if self._precision == "int8":
                some = whole((some - MIDDLE) * STEP @ (self._whole * np.float64(self._weight_step))).astype(np.float64)
            else:
                some = some @ self.weights
        return bool(np.abs(product[:8] - some).max() <= WITHIN[self._precision] * np.abs(some).max())

    def model(self) -> onnx.ModelProto:
        """The chain as a graph."""
        kind = helper.np_dtype_to_tensor_dtype(self.given.dtype)
        ends = [helper.make_tensor_value_info(f"rows {place}", kind, ["N", self._side]) for place in (0, CHAINED)]
        nodes = [node for place in range(CHAINED) for node in self._link(f"rows {place}", f"rows {place + 1}")]
        tensors = [numpy_helper.from_array(value, name) for name, value in self._constants().items()]
        graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _link(self, taken: str, given: str) -> list[onnx.NodeProto]:
        if self._precision != "int8":
            return [helper.make_node("MatMul", [taken, "weights"], [given])]
        left, right, product = f"{taken} left", f"{taken} right", f"{taken} product"
        return [
            helper.make_node("DequantizeLinear", [taken, "step", "middle"], [left]),
            helper.make_node("DequantizeLinear", ["weights", "weight steps", "weight zeros"], [right], axis=1),
            helper.make_node("MatMul", [left, right], [product]),
            helper.make_node("QuantizeLinear", [product, "step", "middle"], [given]),
        ]

    def _constants(self) -> dict[str, NDArray[Any]]:
        if self._precision != "int8":
            return {"weights": self.weights.astype(self.given.dtype)}
        return {
            "weights": self._whole,
            "weight steps": np.full(self._side, self._weight_step),
            "weight zeros": np.zeros(self._side, np.int8),
            "step": np.array(STEP, np.float32),
            "middle": np.array(MIDDLE, np.uint8),
        }


def whole(rows: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Rows as the uint8 steps of an int8 flavour."""
    steps: NDArray[np.uint8] = np.clip(np.rint(rows / STEP) + MIDDLE, 0, 255).astype(np.uint8)
    return steps


def best(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest time of each, in seconds, taken in turn, twice each: the first one may only warm."""
    shortest = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            for _ in range(2):
                start = time.perf_counter()
                work()
                shortest[name] = min(shortest[name], time.perf_counter() - start)
    return shortest


if __name__ == "__main__":
    sys.exit(main())
