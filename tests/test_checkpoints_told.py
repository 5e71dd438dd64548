"""Whose a foreign checkpoint is, what its tensors tell, and what must be said."""

from pathlib import Path
from typing import Any

import pytest

from reidserve.errors import CheckpointError, ExportError

torch = pytest.importorskip("torch", reason="needs reidserve[train]")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import (  # noqa: E402
    Feed,
)
from reidserve.export.checkpoints import read_checkpoint as read_strictly  # noqa: E402
from reidserve.export.checkpoints.dialects import recognise  # noqa: E402
from reidserve.export.checkpoints.files import Contents  # noqa: E402
from reidserve.export.model import Architecture, StemPool  # noqa: E402
from tests.goldens import keys  # noqa: E402
from tests.states import (  # noqa: E402
    PROJECTS,
    STRONG,
    bare,
    damage,
    embedded,
    fast_reid,
    hollow,
    save,
    small,
    strong,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def read_checkpoint(path: Path, **said: Any) -> Any:
    return read_strictly(path, **said)


def test_a_plain_strong_baseline_wants_last_stride_and_stem_pool(path: Path):
    save(strong(), path)
    with pytest.raises(CheckpointError, match=r"--last-stride 1 or 2 .*--stem-pool padded \(strong-baseline\) or halv"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"Say --stem-pool .*Or say --dialect strong-baseline"):
        read_checkpoint(path, last_stride=1)
    checkpoint = read_checkpoint(path, last_stride=2, stem_pool="halving", resize="bilinear")
    assert (checkpoint.architecture.last_stride, checkpoint.architecture.stem_pool) == (2, "halving")
    assert not checkpoint.architecture.stem_relu


def test_a_resize_filter_in_which_projects_differ_is_asked_for(path: Path):
    """With IBN their networks are equal, and the filter is all that their names do not tell but the stride."""
    save(STRONG, path)
    candidates = r"bilinear \(strong-baseline, transreid-resnet\) or bicubic \(dmt\)"
    with pytest.raises(CheckpointError, match=rf"Say --resize {candidates}\. Or say --dialect .* in place of --resize"):
        read_checkpoint(path, last_stride=1)
    for resize in ("bilinear", "bicubic", "lanczos"):
        assert read_checkpoint(path, last_stride=1, resize=resize).feeding == Feed(resize=resize)
    assert read_checkpoint(path, dialect="dmt").feeding == Feed(resize="bicubic")
    assert read_checkpoint(path, dialect="dmt", resize="bilinear").feeding == Feed(resize="bilinear")


def test_a_dialect_that_is_said_stands_for_all_that_is_usual_there(path: Path):
    checkpoint = read_checkpoint(save(strong(), path), dialect="strong-baseline")
    assert checkpoint.architecture == Architecture(backbone="resnet18", classes=5, stem_relu=False)
    assert checkpoint.feeding == Feed(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), colour="rgb", resize="bilinear"
    )
    checkpoint = read_checkpoint(save(bare(ibn="a"), path), dialect="ibn-net")
    assert checkpoint.architecture.last_stride == 2
    assert checkpoint.architecture.neck == "no"
    assert read_checkpoint(path, dialect="ibn-net", last_stride=1).architecture.last_stride == 1


@pytest.mark.parametrize(("state", "dialect"), [(bare(), "torchvision"), (bare(ibn="b"), "ibn-net")])
def test_an_imagenet_network_wants_its_last_stride(path: Path, state: dict[str, Any], dialect: str):
    save(state, path)
    with pytest.raises(CheckpointError, match=rf"--last-stride 1 or 2 \({dialect}: 2\)\. Or say --dialect {dialect}"):
        read_checkpoint(path)
    assert read_checkpoint(path, last_stride=1).dialect == dialect


def test_gems_exponent_wants_to_be_read_or_known_dead(path: Path, images):
    save(STRONG | {"gap.p": torch.full((1,), 4.0)}, path)
    with pytest.raises(CheckpointError, match="--pooling average .* or gem"):
        read_checkpoint(path, last_stride=1)
    assert "gap.p" in read_checkpoint(path, last_stride=1, resize="bilinear", pooling="average").dead
    checkpoint = read_checkpoint(path, last_stride=1, resize="bilinear", pooling="gem")
    assert "gap.p" not in checkpoint.dead
    assert checkpoint.network.pooling.p.item() == 4


def test_a_fixed_exponent_is_said(path: Path):
    checkpoint = read_checkpoint(save(STRONG, path), dialect="strong-baseline", pooling="gem")
    assert checkpoint.absent == {"gap.p": "GeM's exponent, then fixed at the usual 3"}
    assert checkpoint.network.pooling.p.item() == 3


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"arch": "resnet18"}, CheckpointError, "resnet18 was asked for, the tensors are a resnet18_ibn_a's"),
        ({"arch": "resnet50_ibn_a"}, CheckpointError, "resnet50_ibn_a was asked for, the tensors are a resnet18_ibn_a"),
        ({"arch": "vgg16"}, ExportError, "an architecture is resnet18, .* got 'vgg16'"),
        ({"dialect": "ibn-net"}, CheckpointError, "ibn-net was asked for, the tensors are strong-baseline or dmt"),
        ({"dialect": "fastreid"}, CheckpointError, r"\(the dialects are reidserve, fast-reid-0.1, fast-reid-1.0"),
        ({"last_stride": 3, "resize": "bilinear"}, ExportError, "last_stride must be one of 1, 2, got 3"),
    ],
)
def test_what_the_tensors_contradict_is_refused(path: Path, said: dict[str, Any], error: Any, message: str):
    with pytest.raises(error, match=message):
        read_checkpoint(save(STRONG, path), **said)


def test_dialects_with_equal_names_differ_in_what_is_usual_there(path: Path):
    save(strong(), path)
    stems: dict[str, StemPool] = {"strong-baseline": "padded", "dmt": "halving", "transreid-resnet": "halving"}
    for dialect, stem_pool in stems.items():
        checkpoint = read_checkpoint(path, dialect=dialect)
        assert checkpoint.dialect == dialect
        assert checkpoint.architecture == Architecture(
            backbone="resnet18", classes=5, stem_relu=False, stem_pool=stem_pool
        )
        assert checkpoint.feeding == Feed(resize="bicubic" if dialect == "dmt" else "bilinear")
    assert read_checkpoint(save(STRONG, path), dialect="dmt").architecture.stem_pool == "padded"
    assert read_checkpoint(path, dialect="dmt", stem_relu=False).architecture.stem_relu is False


def test_an_early_fast_reid_wants_its_stem_pool_and_its_pooling(path: Path):
    save(fast_reid({"neck.": "heads.bnneck.", "classifier.": "heads.classifier."}, ibn="a"), path)
    with pytest.raises(CheckpointError, match=r"--stem-pool padded \(0\.1 and 0\.1\.1\) or ceil \(later commits"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"Say --pooling average .* or gem .* no heads\.pool_layer\.p to tell$"):
        read_checkpoint(path, dialect="fast-reid-0.1")
    checkpoint = read_checkpoint(path, last_stride=1, stem_pool="ceil", pooling="gem")
    assert (checkpoint.architecture.stem_pool, checkpoint.architecture.pooling) == ("ceil", "gem")
    assert checkpoint.absent == {"heads.pool_layer.p": "GeM's exponent, then fixed at the usual 3"}


def test_a_later_fast_reids_stem_and_exponent_are_told(path: Path):
    save({"model": PROJECTS["fast-reid-1.3"][1], "epoch": 3}, path)
    checkpoint = read_checkpoint(path, last_stride=1)
    assert checkpoint.architecture == small(ibn="a", stem_pool="ceil", pooling="gem")
    assert checkpoint.network.pooling.p.item() == 1
    assert checkpoint.feeding == Feed(resize="bicubic"), "its names are no other project's"
    with pytest.raises(CheckpointError, match=r"left over: heads\.pool_layer\.p"):
        read_checkpoint(path, last_stride=1, pooling="average")


def test_fast_reids_embedding_layer_is_a_convolution_without_bias(path: Path):
    checkpoint = read_checkpoint(save(embedded(), path), dialect="fast-reid-1.3", pooling="average")
    assert checkpoint.architecture == small(stem_pool="ceil", embedding_dim=8)
    assert checkpoint.absent["heads.bottleneck.0.bias"] == "the embedding layer of this project has none"
    assert checkpoint.network.embedding.weight.shape == (8, 512)
    assert not checkpoint.network.embedding.bias.any()


def test_non_local_blocks_are_read_off(path: Path):
    checkpoint = read_checkpoint(save(PROJECTS["fast-reid-1.3 non-local"][1], path), dialect="fast-reid-1.3")
    assert checkpoint.architecture.non_local == (0, 2, 3, 0)
    assert len(checkpoint.network.backbone.NL_3) == 3


PIXELS = {
    "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1),
}


def test_the_normalisation_inside_a_fast_reid_is_taken_into_the_feed(path: Path):
    state = PROJECTS["fast-reid-1.0"][1]
    checkpoint = read_checkpoint(save(state | PIXELS, path), last_stride=1)
    assert checkpoint.feeding == Feed(resize="bicubic")
    assert checkpoint.dead["pixel_std"] == "the normalisation inside, which is taken into the artifact"
    halves = {"pixel_mean": torch.full((1, 3, 1, 1), 127.5), "pixel_std": torch.tensor([51.0, 102.0, 127.5])}
    feeding = read_checkpoint(save(state | halves, path), dialect="fast-reid-1.0").feeding
    assert feeding == Feed(mean=(0.5, 0.5, 0.5), std=(0.2, 0.4, 0.5), resize="bicubic")


@pytest.mark.parametrize("name", PIXELS)
def test_half_a_normalisation_is_refused(path: Path, name: str):
    state = PROJECTS["fast-reid-1.0"][1] | PIXELS
    for how in ("removed", "renamed", "reshaped"):
        damage(broken := dict(state), name, how)
        with pytest.raises(CheckpointError, match=f" {name} must be 3 numbers, red, green and blue"):
            read_checkpoint(save(broken, path), dialect="fast-reid-1.0")


@pytest.mark.parametrize(("which", "parts"), [("pcb", 6), ("layumi-pcb", 6), ("torchreid-pcb", 4)])
def test_a_pcbs_feature_is_its_pooled_parts(path: Path, which: str, parts: int):
    dialect, state = PROJECTS[which]
    checkpoint = read_checkpoint(save(state, path))
    assert checkpoint.dialect == dialect
    architecture = checkpoint.architecture
    assert architecture == small(parts=parts, feature="pooled", neck="no", classes=0)
    assert architecture.feature_dim == parts * 512
    heads = {name for name in state if not name.startswith(("base.", "model.", "layer", "conv1.", "bn1."))}
    assert {checkpoint.dead[name] for name in heads} == {
        "reduces and classifies the parts in training; the project's feature is the pooled parts"
    }


@pytest.mark.parametrize(("which", "part"), [("pcb", "instance3."), ("layumi-pcb", "classifier5.")])
def test_a_pcb_of_another_number_of_parts_is_refused(path: Path, which: str, part: str):
    dialect, state = PROJECTS[which]
    fewer = {name: tensor for name, tensor in state.items() if not name.startswith(part)}
    with pytest.raises(CheckpointError, match=f"has classifiers of the parts 0, 1, 2, .*, {dialect} has 6"):
        read_checkpoint(save(fewer, path))


NECKS = {
    "fast-reid-1.3": ("heads.bottleneck.", r"has fast-reid's names without its neck: heads\.bottleneck"),
    "layumi": ("classifier.add_block.", r"has layumi's names without its neck: classifier\.add_block"),
    "torchreid-fc512": ("fc.", r"of another shape: classifier\.weight \(expected 5x512, got 5x8\)"),
    "strong-baseline plain": ("bottleneck.", r"has no neck: bottleneck\.weight"),
}


@pytest.mark.parametrize("which", NECKS)
def test_a_neck_that_is_missing_whole_is_refused(path: Path, which: str):
    start, message = NECKS[which]
    state = {name: tensor for name, tensor in PROJECTS[which][1].items() if not name.startswith(start)}
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(state, path), last_stride=1, pooling="average", stem_pool="padded")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("backbone.layer1.0.se.fc.0.weight", r"has squeeze-and-excitation blocks \(backbone\.layer1\.0\.se\.fc"),
        ("backbone.conv1.0.weight", r"is a ResNeSt of fast-reid \(backbone\.conv1\.0\.weight\)"),
    ],
)
def test_other_networks_of_fast_reid_are_refused_by_name(path: Path, more: str, message: str):
    state = PROJECTS["fast-reid-1.3"][1] | hollow({more: (4, 64)})
    with pytest.raises(CheckpointError, match=f"{message}.* export it to ONNX where its code is, and give that with"):
        read_checkpoint(save(state, path), dialect="fast-reid-1.3")


@pytest.mark.parametrize("name", ["vit_base", "market_vit_transreid_stride", "veri_vit_transreid_stride"])
def test_a_vision_transformer_of_transreid_is_refused_with_the_way_out(shared: Path, path: Path, name: str):
    save(hollow(keys(shared / "data/goldens/dialects" / f"transreid_{name}_keys")), path)
    for dialect in (None, "transreid-resnet"):
        with pytest.raises(CheckpointError, match="of TransReID, whose feature may need the camera id .*--onnx"):
            read_checkpoint(path, dialect=dialect)


@pytest.mark.parametrize(
    ("name", "dialect", "architecture"),
    [
        ("dmt_resnet101_ibn_a_gempoolP_keys", "dmt", Architecture(backbone="resnet101", ibn="a", classes=751)),
        ("fastreid_v01_bot_R50_ibn_keys", "fast-reid-0.1", Architecture(backbone="resnet50", ibn="a", classes=751)),
    ],
)
def test_networks_of_which_only_the_names_are_known_are_recognised(
    shared: Path, name: str, dialect: str, architecture: Architecture
):
    state = hollow(keys(shared / "data/goldens/dialects" / name))
    reading = recognise(Contents(Path("weights"), "", state, {}), said=dialect)
    assert (reading.dialect.name, reading.architecture) == (dialect, architecture)


def test_tensors_of_nobody_are_refused(path: Path):
    with pytest.raises(CheckpointError, match="of no known dialect .*: its tensors are bias, weight"):
        read_checkpoint(save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, path))
