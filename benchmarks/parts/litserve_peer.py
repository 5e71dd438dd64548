"""The job of reid-serve as users of LitServe write it: decode, ONNX Runtime and FAISS behind POST /predict.

    python -P benchmarks/parts/litserve_peer.py MODEL GALLERY PRECISION PORT WORKERS

Decoding is reidserve's own, so that the answers can be held equal; the rest is what LitServe's guide shows: an image as
base64 in JSON, batches of MOST at most that are waited for WAIT seconds, workers that share the cores.
"""

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import litserve
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from reidserve.embed import Image, Precision, open_embedder
from reidserve.embed.cores import cores
from reidserve.embed.engines import graph_of
from reidserve.index import read_snapshot

MOST, WAIT = 16, 0.01
TOP_K = 10

Hits = dict[str, list[tuple[str, float]]]


class Search(litserve.LitAPI):  # type: ignore[misc]  # it has no types
    """Ranks a gallery for an image."""

    def __init__(self, model: Path, gallery: Path, precision: Precision, *, workers: int) -> None:
        super().__init__(max_batch_size=MOST, batch_timeout=WAIT)
        self._served = (model, gallery, precision)
        self._workers = workers

    def setup(self, device: str) -> None:
        """Load the model and the gallery, in the worker's process."""
        model, gallery, precision = self._served
        self._embedder = open_embedder(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, cores() // self._workers)
        self._engine: Any = onnxruntime.InferenceSession(
            model / graph_of(self._embedder.contract, precision=precision, device="cpu"),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
        snapshot = read_snapshot(gallery, identity=self._embedder.contract.identity)
        self._names = [entry.id for entry in snapshot.entries()]
        self._index = faiss.IndexFlatIP(self._embedder.contract.dim)
        self._index.add(np.stack([snapshot.vector(snapshot.row(name)) for name in self._names]))

    def decode_request(self, request: dict[str, str]) -> Image:
        """An image as the model takes it."""
        return self._embedder.prepare(base64.b64decode(request["image"]))

    def batch(self, inputs: Sequence[Image]) -> NDArray[np.uint8]:
        """Images together."""
        return np.stack(inputs)

    def predict(self, batch: NDArray[np.uint8]) -> list[Hits]:
        """The best entries for each image."""
        rows = self._engine.run(None, {self._engine.get_inputs()[0].name: batch})[0]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        scores, found = self._index.search(rows, TOP_K)
        return [
            {"hits": [(self._names[row], float(score)) for row, score in zip(*one, strict=True)]}
            for one in zip(found, scores, strict=True)
        ]

    def unbatch(self, output: list[Hits]) -> list[Hits]:
        """Answers one by one."""
        return output

    def encode_response(self, output: Hits) -> Hits:
        """An answer as JSON."""
        return output


if __name__ == "__main__":
    folder, crops, flavour, port, count = sys.argv[1:]
    search = Search(Path(folder), Path(crops), "int8" if flavour == "int8" else "fp32", workers=int(count))
    server = litserve.LitServer(search, accelerator="cpu", workers_per_device=int(count), fast_queue=True, timeout=60)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")
