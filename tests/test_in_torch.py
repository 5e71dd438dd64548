import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from reidserve.datasets import Crop, read_crops
from reidserve.embed import Preprocessing, open_embedder
from reidserve.errors import DeviceError, EmbeddingError
from reidserve.evaluate import embed_crops, evaluate
from tests.conftest import run_command, write_crops

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from reidserve.export.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.convert import Feeding  # noqa: E402
from reidserve.export.convert.from_checkpoint import export_checkpoint  # noqa: E402
from reidserve.export.convert.in_torch import TorchEmbedder  # noqa: E402
from reidserve.export.model import Architecture  # noqa: E402
from tests.test_from_checkpoint import FEEDING, lively_network  # noqa: E402

TURNED = Feeding(
    height=32,
    width=16,
    resize="bicubic",
    preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1), colour="bgr"),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    write_checkpoint(path, lively_network(Architecture(backbone="resnet18", ibn="a", classes=5)), {})
    return path


def mixed_up(crops: list[Crop]) -> list[Crop]:
    """Crops with identities drawn at random: ranked neither wholly right nor wholly wrong by any network."""
    pids = np.random.default_rng(0).integers(0, 6, len(crops))
    return [dataclasses.replace(crop, pid=str(pid)) for crop, pid in zip(crops, pids, strict=True)]


@pytest.mark.parametrize("feeding", [FEEDING, TURNED], ids=["rgb", "bgr, bicubic"])
def test_a_checkpoint_in_torch_scores_as_the_artifact_exported_from_it(
    checkpoint: Path, tmp_path: Path, feeding: Feeding
):
    write_crops(tmp_path / "crops", pids=12)
    crops = mixed_up(read_crops(tmp_path / "crops"))
    read = read_checkpoint(checkpoint)
    export_checkpoint(read, tmp_path / "model", feeding)
    embedders = TorchEmbedder(read, feeding), open_embedder(tmp_path / "model")
    for flip in (False, True):
        of_torch, of_artifact = (embed_crops(crops, crops, embedder, flip=flip)[0] for embedder in embedders)
        assert of_torch.embeddings.dtype == np.float32
        assert of_torch.embeddings.shape == (24, 512)
        np.testing.assert_allclose(of_torch.embeddings, of_artifact.embeddings, rtol=0, atol=1e-5)
        scores, expected = evaluate(of_torch, of_torch).metrics, evaluate(of_artifact, of_artifact).metrics
        assert abs(scores.mAP - expected.mAP) <= 1e-4
        assert 0.2 < expected.mAP < 0.8


def test_feeding_makes_a_difference(checkpoint: Path):
    batch = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)
    read = read_checkpoint(checkpoint)
    swapped = Preprocessing(mean=FEEDING.preprocessing.mean, std=FEEDING.preprocessing.std, colour="bgr")
    other = dataclasses.replace(FEEDING, preprocessing=swapped)
    assert np.abs(TorchEmbedder(read, FEEDING).embed(batch) - TorchEmbedder(read, other).embed(batch)).max() > 1e-3


def test_batches_of_any_size_are_embedded_as_single_images_are(checkpoint: Path):
    batch = np.random.default_rng(0).integers(0, 256, (35, 32, 16, 3), dtype=np.uint8)
    embedder = TorchEmbedder(read_checkpoint(checkpoint), TURNED)
    together = embedder.embed(batch)
    alone = np.concatenate([embedder.embed(batch[row : row + 1]) for row in (0, 31, 32, 34)])
    np.testing.assert_allclose(together[[0, 31, 32, 34]], alone, rtol=0, atol=1e-6)


def test_one_image_that_fails_costs_no_other_its_embedding(checkpoint: Path):
    batch = np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3), dtype=np.uint8)
    batch[2] = 0
    read = read_checkpoint(checkpoint)
    expected = TorchEmbedder(read, FEEDING).embed(batch)
    black = TorchEmbedder(read, FEEDING).embed(batch[2:3])

    def spoil(module, arguments, output):
        features = torch.nn.functional.normalize(output)
        output[(features - torch.from_numpy(black)).abs().amax(dim=1) < 1e-5] = np.nan
        return output

    read.network.register_forward_hook(spoil)
    answers = TorchEmbedder(read, FEEDING).embed_each(batch)
    assert isinstance(answers[2], EmbeddingError)
    assert str(answers[2]) == "the network gave no unit vector, its length is nan"
    others = np.stack([answer for answer in answers if not isinstance(answer, EmbeddingError)])
    np.testing.assert_allclose(others, expected[[0, 1, 3]], rtol=0, atol=1e-6)


def test_a_device_that_is_not_there_is_refused_and_never_replaced(checkpoint: Path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="asked for cuda, torch finds none: give --device cpu"):
        TorchEmbedder(read_checkpoint(checkpoint), FEEDING, device="cuda")


@pytest.mark.gpu
def test_cuda_embeds_as_the_cpu_does(checkpoint: Path):
    batch = np.random.default_rng(0).integers(0, 256, (35, 64, 32, 3), dtype=np.uint8)
    on_cpu = TorchEmbedder(read_checkpoint(checkpoint), FEEDING).embed(batch)
    on_gpu = TorchEmbedder(read_checkpoint(checkpoint), FEEDING, device="cuda")
    assert on_gpu.engine == "fp32/torch-cuda"
    np.testing.assert_allclose(on_gpu.embed(batch), on_cpu, rtol=0, atol=1e-5)


def test_reid_eval_puts_a_checkpoint_and_its_artifact_side_by_side(checkpoint: Path, tmp_path: Path):
    write_crops(tmp_path / "data" / "query", pids=12, camids=1)
    write_crops(tmp_path / "data" / "bounding_box_test", pids=12, camids=3)
    feeding = ["--size", f"{FEEDING.height}x{FEEDING.width}"]
    exported = run_command("reid-export", "--checkpoint", checkpoint, *feeding, "--out", tmp_path / "model")
    assert exported.returncode == 0, exported.stderr
    stages = ["--checkpoint", checkpoint, *feeding, "--model", tmp_path / "model"]
    scored = run_command("reid-eval", tmp_path / "data", *stages, "--json")
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)
    of_torch, of_artifact = found["subjects"]
    assert (of_torch["name"], of_torch["facts"]["engine"]) == ("checkpoint", "fp32/torch-cpu")
    assert of_torch["facts"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert abs(of_torch["figures"]["mAP"] - of_artifact["figures"]["mAP"]) <= 1e-4
    assert found["losses"] == ["From checkpoint to artifact: no difference."]
