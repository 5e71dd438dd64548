"""reid-export inspect: what a checkpoint is, told without exporting it, also of one that is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reidserve.commands.export import app
from reidserve.errors import CheckpointError, UsageError
from tests.conftest import run_command

torch = pytest.importorskip("torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import Feed, inspect_checkpoint, read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.model import Architecture, build_network  # noqa: E402
from tests.goldens import keys  # noqa: E402
from tests.states import BOTTLENECK, STRONG, fast_reid, hollow, save, strong  # noqa: E402

OURS = Architecture(backbone="resnet18", ibn="a", classes=5, embedding_dim=8, pooling="gem")
FEED = Feed(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), resize="bicubic", height=64, width=32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture
def inspect(capsys) -> Callable[[Path], tuple[int, dict[str, Any], str]]:
    """The exit code of `reid-export inspect FILE`, what it tells machines and what it tells people."""

    def run(path: Path) -> tuple[int, dict[str, Any], str]:
        code = app(["inspect", str(path), "--json"])
        document = json.loads(capsys.readouterr().out)
        assert app(["inspect", str(path)]) == code
        return code, document, " ".join(capsys.readouterr().out.split())

    return run


def test_our_own_checkpoint_says_all_of_itself(path: Path, inspect):
    write_checkpoint(path, build_network(OURS, seed=0), {"rank1": "0.91", "dataset": "toy", **FEED.to_metadata()})
    code, document, text = inspect(path)
    assert code == 0
    assert document["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["dialects"] == ["reidserve"]
    told = {"backbone": "resnet18", "ibn": "a", "last_stride": 1, "neck": "bnneck", "pooling": "gem"}
    assert told.items() <= document["architecture"].items()
    assert (document["architecture"]["classes"], document["architecture"]["embedding_dim"]) == (5, 8)
    assert document["metadata"] == {"dataset": "toy", "rank1": "0.91"}
    assert document["asked"] == {}
    assert document["exported"] == {
        "dim": 8,
        "feature": "after_neck",
        "height": 64,
        "width": 32,
        "resize": "bicubic",
        "colour": "rgb",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "feeding told by": "the file",
        "embedding": "of unit length: L2 is in the graph",
    }
    assert document["refusal"] is None
    assert "last_stride 1 " in text
    assert "rank1 0.91" in text
    assert "must be said" not in text


def test_tensors_are_counted_and_folded_by_stage(path: Path, inspect):
    _, document, text = inspect(save(STRONG, path))
    tensors = document["tensors"]
    assert tensors["count"] == len(STRONG) == 138
    assert tensors["bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in STRONG.values())
    assert tensors["dtypes"] == {"float32": 117, "int64": 21}
    layers = [f"base.layer{number}" for number in (1, 2, 3, 4)]
    assert sorted(tensors["stages"]) == ["base.bn1", "base.conv1", *layers, "bottleneck", "classifier"]
    assert sum(stage["tensors"] for stage in tensors["stages"].values()) == 138
    assert tensors["stages"]["base.conv1"] == {"tensors": 1, "numbers": 64 * 3 * 7 * 7}
    assert [one["name"] for one in tensors["all"]] == list(STRONG)
    assert {"name": "classifier.weight", "shape": [5, 512], "dtype": "float32"} in tensors["all"]
    assert "base.conv1 9,408 numbers: weight 64x3x7x7" in text
    assert "base.layer1 148,356 numbers: " in text
    assert "138 of 44.8 MB: 117 float32, 21 int64" in text


def test_what_a_foreign_file_does_not_tell_is_asked_for_with_the_candidates(path: Path, inspect):
    code, document, text = inspect(save(strong() | {"base.fc.bias": torch.ones(7)}, path))
    assert code == 0
    assert document["architecture"]["last_stride"] is None
    assert document["architecture"]["stem_pool"] is None
    assert document["asked"]["--last-stride"].startswith("1 or 2 ")
    assert {"padded", "halving"} <= set(document["asked"]["--stem-pool"].split())
    assert document["asked"]["--resize"] == "bilinear (strong-baseline, transreid-resnet) or bicubic (dmt)"
    assert document["asked"]["--size"] == (
        "HEIGHTxWIDTH that it was trained on, usually 256x128 in strong-baseline, 384x384 in dmt, "
        "256x128 in transreid-resnet"
    )
    assert document["asked"]["--dialect"] == (
        "strong-baseline or dmt or transreid-resnet, in place of --last-stride, --stem-pool, --resize, for what is "
        "usual in that project"
    )
    assert document["dialects"] == ["strong-baseline", "dmt", "transreid-resnet"]
    assert document["dead"]["base.fc.bias"] == "the ImageNet classifier, which the network never reads"
    assert document["exported"]["height"] is None
    assert document["exported"]["resize"] is None
    assert document["exported"]["feeding told by"] == "nothing: as is usual in strong-baseline"
    assert "last_stride not told" in text
    assert "not read: base.fc.bias the ImageNet classifier" in text


def test_what_is_asked_for_is_all_that_an_export_then_needs(path: Path, inspect):
    _, document, _ = inspect(save(strong(), path))
    assert document["asked"].keys() == {"--last-stride", "--stem-pool", "--resize", "--size", "--dialect"}
    read = read_checkpoint(path, last_stride=1, stem_pool="padded", resize="bilinear")
    assert read.dead == document["dead"]


def test_a_dialect_is_offered_only_for_what_it_answers(path: Path, inspect):
    """fast-reid's pooling is another one from recipe to recipe."""
    _, document, _ = inspect(save(fast_reid(BOTTLENECK, ibn="a"), path))
    assert document["asked"].keys() == {"--last-stride", "--pooling", "--size", "--dialect"}
    assert document["asked"]["--dialect"] == (
        "fast-reid-1.3, in place of --last-stride, for what is usual in that project"
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_and_texts_beside_the_weights_are_told(path: Path, inspect, zipped: bool):
    beside = {
        "state_dict": STRONG,
        "epoch": 60,
        "rank1": np.float32(0.931),
        "mAP": np.float64(0.8521),
        "best_top1": 0.5,
        "name": "ft_ResNet50",
        "optimizer": {"state": {}, "lr": 0.1},
        "scheduler": None,
    }
    code, document, text = inspect(save(beside, path, _use_new_zipfile_serialization=zipped))
    assert code == 0
    assert document["metadata"] == {
        "epoch": "60",
        "rank1": "0.931",
        "mAP": "0.8521",
        "best_top1": "0.5",
        "name": "ft_ResNet50",
    }
    assert "rank1 0.931" in text


class Scalar:
    """What torch.save writes for a scalar of NumPy, with bytes of the writer's choice."""

    def __init__(self, kind: str, data: bytes) -> None:
        self.kind = kind
        self.data = data

    def __reduce__(self) -> Any:
        return np.float32(0).__reduce__()[0], (np.dtype(self.kind), self.data)


@pytest.mark.parametrize(("kind", "data"), [("f4", b"12"), ("f8", b"1"), ("S4", b"1234"), ("c8", b"12345678")])
def test_a_scalar_that_is_no_plain_number_is_passed_over(path: Path, inspect, kind: str, data: bytes):
    _, document, _ = inspect(save({"state_dict": STRONG, "rank1": Scalar(kind, data), "epoch": 3}, path))
    assert document["metadata"] == {"epoch": "3"}


def test_a_refused_file_still_shows_what_could_be_read(path: Path, inspect):
    state = {name: tensor for name, tensor in STRONG.items() if name != "bottleneck.weight"}
    code, document, text = inspect(save({"state_dict": state, "epoch": 7}, path))
    assert code == 1
    assert document["refusal"].endswith("is no resnet18_ibn_a of strong-baseline: missing: bottleneck.weight")
    assert document["architecture"]["ibn"] == "a"
    assert document["metadata"] == {"epoch": "7"}
    assert document["tensors"]["count"] == 137
    assert document["exported"] is None
    assert document["asked"] == {}
    assert text.endswith("missing: bottleneck.weight")


def test_tensors_of_nobody_are_shown_and_refused(path: Path, inspect):
    code, document, text = inspect(save({"a.b": torch.ones(2, 3, dtype=torch.float16), "c": torch.ones(())}, path))
    assert code == 1
    assert document["dialects"] == []
    assert document["architecture"] is None
    assert document["tensors"]["dtypes"] == {"float16": 1, "float32": 1}
    assert "dialect none that is known" in text
    assert "a 6 numbers: b 2x3 c 1 numbers: a number" in text
    assert "is of no known dialect" in document["refusal"]


def test_weights_that_diverged_are_refused(path: Path, inspect):
    state = STRONG | {"base.conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}
    code, document, _ = inspect(save(state, path))
    assert code == 1
    assert "base.conv1.weight holds NaN or infinity: did its training diverge?" in document["refusal"]


@pytest.mark.slow
def test_every_projects_checkpoint_tells_what_would_come_of_it(shared: Path, path: Path):
    goldens = sorted(shared.glob("data/goldens/dialects/*/golden.npz"))
    assert len(goldens) > 15
    for golden in goldens:
        found = inspect_checkpoint(save(hollow(keys(golden.parent)), path))
        assert found.refusal is None, golden.parent.name
        assert found.architecture is not None
        with np.load(golden) as features:
            assert found.architecture.feature_dim == features["feature"].shape[1], golden.parent.name


@pytest.mark.parametrize("name", ["transreid_vit_base_keys", "transreid_market_vit_transreid_stride_keys"])
def test_a_vision_transformer_is_refused_with_the_way_out(shared: Path, path: Path, inspect, name: str):
    code, document, _ = inspect(save(hollow(keys(shared / "data/goldens/dialects" / name)), path))
    assert code == 1
    for way_out in ("TransReID", "camera id", "--onnx"):
        assert way_out in document["refusal"]
    assert document["tensors"]["count"] > 100


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_is_refused_with_the_way_out(path: Path, zipped: bool):
    save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"linear\.Linear.*torch\.save\(model\.state_dict\(\), path\)"):
        inspect_checkpoint(path)


def test_the_word_inspect_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch, inspect):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "inspect", build_network(OURS, seed=0), FEED.to_metadata())
    code, document, _ = inspect(Path("inspect"))
    assert (code, document["file"]) == (0, "inspect")
    with pytest.raises(UsageError, match="--size must be"):
        app(["--checkpoint", "inspect", "--size", "none"])
    assert run_command("reid-export", "inspect", cwd=tmp_path).returncode == 2


def test_a_file_that_is_not_there_is_told_to_machines_too(tmp_path: Path):
    failed = run_command("reid-export", "inspect", "absent", "--json", cwd=tmp_path)
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"] == {
        "reason": "CHECKPOINT_INVALID",
        "message": "absent cannot be read: No such file or directory",
    }
