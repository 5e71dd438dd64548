"""From a dataset or a checkpoint to the scores of what is served: torch, artifact, gallery and server on the same
pictures."""

import json
from pathlib import Path

import numpy as np
import pytest

from reidserve.client import Client
from reidserve.datasets import JUNK, Crop, read_crops, read_dataset
from reidserve.datasets.synth import SynthSpec, write_dataset
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
    network = lively_network(architecture)
    # Fifty layers of drawn weights make another ranking of a last digit; a trained network's branches add little.
    for name, parameter in network.named_parameters():
        if name.endswith("bn3.weight"):
            parameter.data *= 0.1
    write_checkpoint(tmp_path / "c.safetensors", network, Feed(height=256, width=128).to_metadata())
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


def average_precision_as_served(client: Client, query: Crop, entries: int) -> float:
    """The mean of the precision at each right hit, by the rule of Market-1501 written out."""
    hits = client.search(query.path, top_k=entries).hits
    pids = [hit.pid for hit in hits if hit.pid != JUNK and (hit.pid, hit.camid) != (query.pid, query.camid)]
    ranks = [rank for rank, pid in enumerate(pids, 1) if pid == query.pid]
    return float(np.mean([(place + 1) / rank for place, rank in enumerate(ranks)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "dim"),
    [
        (["--arch", "resnet50_ibn_a"], 2048),
        (["--arch", "resnet50", "--set", "network.parts=6"], 6 * 2048),
    ],
    ids=["bnneck", "pcb"],
)
def test_what_was_trained_scores_the_same_wherever_it_runs(tmp_path: Path, network: list[str], dim: int):
    spec = SynthSpec(train_identities=12, test_identities=10, cameras=2, images_per_camera=3, junk=3, distractors=5)
    data, run, model, gallery = (tmp_path / name for name in ("data", "run", "model", "g.gallery"))
    write_dataset(data, spec)
    small = ("--size", "96x32", "--epochs", "2", "--set", "batch.identities=4", "--set", "evaluation.every=1")
    done("reid-train", data, "--out", run, *small, *network)
    exported = json.loads(done("reid-export", "--checkpoint", run / "model.safetensors", "--out", model, "--json"))
    assert exported["contract"]["dim"] == dim
    assert (exported["contract"]["height"], exported["contract"]["width"]) == (96, 32)
    done("reid-index", "build", data / "bounding_box_test", "--model", model, "--out", gallery)
    deployed = ("--checkpoint", run / "model.safetensors", "--model", model, "--gallery", gallery)
    parts = read_dataset(data)
    running = start_server("--model", model, "--gallery", gallery)
    try:
        found = json.loads(done("reid-eval", data, *deployed, "--server", running.target, "--json"))
        with Client(running.target) as client:
            precisions = [average_precision_as_served(client, query, len(parts.gallery)) for query in parts.query]
    finally:
        assert stop_server(running) == 0
    figures = {one["name"]: one["figures"] for one in found["subjects"]}
    assert list(figures) == ["checkpoint", "artifact", "gallery", "server"]
    assert figures["artifact"] == figures["gallery"] == figures["server"]
    assert figures["server"]["mAP"] == pytest.approx(np.mean(precisions), abs=1e-12)
    assert abs(figures["checkpoint"]["mAP"] - figures["artifact"]["mAP"]) <= 1e-4
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert max(line["mAP"] for line in logged[1:]) == pytest.approx(figures["checkpoint"]["mAP"], abs=1e-4)
    assert 0 < figures["artifact"]["mAP"] < 1


def done(command: str, *arguments: object) -> str:
    """What a command that must succeed prints."""
    finished = run_command(command, *arguments, timeout=900)  # a ResNet-50 learns, on a machine that may be busy
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout
