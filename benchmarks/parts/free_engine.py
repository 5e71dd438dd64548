"""reid-serve with an engine that answers at once: what is left is the server.

    python -P benchmarks/parts/free_engine.py [--leak BYTES] ARGUMENTS OF reid-serve

The model must be one of `make_model`: its embedding is a grid of 8 x 4 of the crop's pixels, which NumPy takes out of
a batch in microseconds. It starts, checks its canaries and is batched as any other. `--leak` keeps so many bytes for
each image that it embeds: what watches for leaks must find it.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

import reidserve.embed.embedder as opening
from reidserve.embed import Embedder, Preprocessing
from reidserve.embed.artifact import Artifact, read_artifact
from reidserve.embed.contract import Precision
from reidserve.embed.engines import Device
from reidserve.embed.images import Batch
from reidserve.embed.session import Session
from reidserve.export.convert import Feeding, adopt

ROWS, COLUMNS = 8, 4
DIM = 3 * ROWS * COLUMNS
ENGINE = "fp32/free-cpu"
_MIDDLE = np.float32(127.5)


class FreeSession:
    """Pixels of a grid, less the middle, made of unit length."""

    engine = ENGINE
    max_batch = 32
    lanes = 1

    def __init__(self, *, leak: int = 0) -> None:
        self._leak = leak
        self._leaked: list[bytes] = []

    def __call__(self, batch: Batch, /) -> NDArray[np.float32]:
        """Embeddings (N, DIM) of a Batch."""
        _, height, width, _ = batch.shape
        grid = batch[:, :: height // ROWS, :: width // COLUMNS].transpose(0, 3, 1, 2)
        rows: NDArray[np.float32] = grid.reshape(len(batch), DIM).astype(np.float32) - _MIDDLE
        if self._leak:
            self._leaked += [np.random.bytes(self._leak) for _ in batch]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


def make_model(folder: Path, *, height: int, width: int) -> None:
    """Write the artifact of this engine; `folder` is made."""
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool", ["pixels"], ["grid"], kernel_shape=[1, 1], strides=[height // ROWS, width // COLUMNS]
            ),
            helper.make_node("Flatten", ["grid"], ["feature"]),
        ],
        "free",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, height, width])],
        [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["N", DIM])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.parent.mkdir(parents=True, exist_ok=True)
    source = folder.with_suffix(".onnx")
    source.write_bytes(model.SerializeToString())
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), colour="rgb")
    adopt(source, folder, Feeding(height=height, width=width, resize="bilinear", preprocessing=preprocessing))


def open_free(folder: Path) -> Embedder:
    """The embedder that the server runs."""
    return Embedder(read_artifact(folder).contract, FreeSession())


def main() -> None:
    arguments, leak = sys.argv[1:], 0
    if arguments[:1] == ["--leak"]:
        leak, arguments = int(arguments[1]), arguments[2:]

    def start_free(
        artifact: Artifact, *, precision: Precision = "fp32", device: Device = "cpu", threads: int | None = None
    ) -> Session:
        return FreeSession(leak=leak)

    setattr(opening, "start_session", start_free)  # noqa: B010  # it is that module's own
    sys.argv = ["reid-serve", *arguments]
    from reidserve.commands.serve import main as serve

    serve()


if __name__ == "__main__":
    main()
