"""From a checkpoint to the scores of what is served: torch, artifact and server on the same photographs."""

from pathlib import Path

import numpy as np
import pytest

from reidserve.client import Client
from reidserve.datasets import Crop, read_crops
from reidserve.embed import Preprocessing, open_embedder
from reidserve.evaluate import Labelled, Labels, embed_crops, evaluate
from reidserve.index import build_gallery
from tests.conftest import run_command, start_server, stop_server
from tests.test_real import PATTERN

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from reidserve.export.checkpoints import Feed, read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.convert.feeding import feed_by_hand  # noqa: E402
from reidserve.export.model import Architecture  # noqa: E402
from tests.test_from_checkpoint import lively_network  # noqa: E402


def in_torch(checkpoint: Path, crops: list[Crop], batch: np.ndarray) -> Labelled:
    network = read_checkpoint(checkpoint).network
    mean, std = Feed().mean, Feed().std
    pixels = feed_by_hand(batch, Preprocessing(mean=mean, std=std, colour="rgb"))
    with torch.inference_mode():
        features = torch.cat([network(part) for part in torch.from_numpy(pixels).split(20)])
    unit = torch.nn.functional.normalize(features).numpy()
    return Labelled(
        unit, Labels([crop.pid for crop in crops], [crop.camid for crop in crops], [str(crop.path) for crop in crops])
    )


def test_torch_artifact_and_server_score_the_same_on_real_photographs(shared: Path, tmp_path: Path):
    photographs = shared / "data/vehicles/images/test"
    crops = read_crops(photographs, pattern=PATTERN)
    architecture = Architecture(backbone="resnet50", ibn="a", classes=60)
    write_checkpoint(
        tmp_path / "c.safetensors", lively_network(architecture), Feed(height=256, width=128).to_metadata()
    )
    exported = run_command("reid-export", "--checkpoint", tmp_path / "c.safetensors", "--out", tmp_path / "model")
    assert exported.returncode == 0, exported.stderr

    embedder = open_embedder(tmp_path / "model")
    embedded, _, failures = embed_crops(crops, crops, embedder)
    assert failures == []
    batch = np.stack([embedder.prepare(crop.path.read_bytes()) for crop in crops])
    torch_scores = evaluate(*[in_torch(tmp_path / "c.safetensors", crops, batch)] * 2).metrics
    artifact_scores = evaluate(embedded, embedded).metrics
    assert abs(torch_scores.mAP - artifact_scores.mAP) <= 1e-4
    assert 0 < artifact_scores.mAP < 1

    build_gallery(crops, photographs, tmp_path / "g.gallery", embedder)
    running = start_server("--model", tmp_path / "model", "--gallery", tmp_path / "g.gallery")
    try:
        with Client(running.target) as client:
            precisions = [average_precision_as_served(client, crop, len(crops)) for crop in crops]
    finally:
        assert stop_server(running) == 0
    # Summed in the same order as the harness sums: equal to the last bit.
    assert float(np.mean(precisions)) == artifact_scores.mAP


def average_precision_as_served(client: Client, crop: Crop, entries: int) -> float:
    """Each photograph has one partner, which the other camera took: average precision is 1 / its rank."""
    ranked = [(hit.pid, hit.camid) for hit in client.search(crop.path, top_k=entries).hits]
    considered = [pid for pid, camid in ranked if not (pid == crop.pid and camid == crop.camid)]
    return 1 / (considered.index(crop.pid) + 1)
