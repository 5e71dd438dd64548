import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reidserve.errors import CheckpointError, ExportError

torch = pytest.importorskip("torch", reason="needs reidserve[train]")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import (  # noqa: E402
    DIALECTS,
    Feed,
    load_pretrained,
    write_checkpoint,
)
from reidserve.export.checkpoints import read_checkpoint as read_strictly  # noqa: E402
from reidserve.export.checkpoints.accounts import account  # noqa: E402
from reidserve.export.checkpoints.dialects import recognise  # noqa: E402
from reidserve.export.checkpoints.files import Contents  # noqa: E402
from reidserve.export.model import Architecture, Network, build_network  # noqa: E402

SMALL = Architecture(backbone="resnet18", ibn="a", classes=5)
FEED = Feed(resize="bicubic", height=64, width=32)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks on shared cores: more threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_checkpoint(path: Path, **said: Any) -> Any:
    return read_strictly(path, **said)


def built(architecture: Architecture, seed: int = 4) -> Any:
    return build_network(architecture, seed=seed)


def small(**choices: Any) -> Architecture:
    facts: dict[str, Any] = {"backbone": "resnet18", "classes": 5} | choices
    return Architecture(**facts)


def shapes(**choices: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = Network(small(**choices))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def hollow(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Tensors of these shapes that take no room in a file: each is one number, repeated."""
    kinds = {True: torch.int64, False: torch.float32}
    return {name: torch.ones((), dtype=kinds[size == ()]).expand(size) for name, size in sizes.items()}


def strong(**choices: Any) -> dict[str, Any]:
    """A small network's tensors as strong-baseline names them."""
    parts = {"backbone.": "base.", "neck.": "bottleneck."}
    return hollow({_renamed(name, parts): size for name, size in shapes(**choices).items()})


def bare(**choices: Any) -> dict[str, Any]:
    """A small network's tensors as torchvision and IBN-Net name them."""
    parts = {"backbone.": "", "classifier.": "fc."}
    return hollow({_renamed(name, parts): size for name, size in shapes(neck="no", **choices).items()})


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    part = name[: name.index(".") + 1]
    return parts.get(part, part) + name.removeprefix(part)


def save(state: object, path: Path, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture(scope="module")
def network() -> Network:
    network = build_network(SMALL, seed=0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
            elif name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def own(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `network`, as reid-train would write it."""
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    write_checkpoint(path, network, {"epoch": "12", **FEED.to_metadata()})
    return path


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def feature(network: Network, images: Any) -> np.ndarray:
    with torch.inference_mode():
        return network(images).numpy()


# Golden features, computed by the projects' own code.

GOLDENS: list[tuple[str, dict[str, Any]]] = [
    ("strong_resnet50_bnneck", {"dialect": "strong-baseline"}),
    ("strong_resnet50_ibn_a_bnneck", {"last_stride": 1}),
    ("strong_resnet50_ibn_a_neck_no", {"dialect": "strong-baseline", "arch": "resnet50_ibn_a"}),
    ("torchvision_resnet50", {"dialect": "torchvision"}),
    ("ibnnet_resnet50_ibn_a_s1", {"dialect": "ibn-net", "last_stride": 1}),
    ("ibnnet_resnet50_ibn_a_s2", {"dialect": "ibn-net"}),
    ("ibnnet_resnet18_ibn_a_s2", {"last_stride": 2}),
    ("dmt_resnet50", {"last_stride": 1, "stem_pool": "halving"}),
]


@pytest.mark.parametrize(("name", "said"), GOLDENS, ids=[name for name, _ in GOLDENS])
def test_a_checkpoint_computes_what_its_own_project_computes(shared: Path, path: Path, name: str, said: dict[str, Any]):
    folder = shared / "data/goldens/dialects" / name
    meta = json.loads((folder / "meta.json").read_text())
    golden = np.load(folder / "golden.npz")
    save(golden_weights(folder, meta), path)
    checkpoint = read_checkpoint(path, **said)
    height, width = meta["input_size_hw"]
    for kind, crops in golden_inputs(height, width).items():
        expected = golden[f"{kind}feature"]
        got = feature(checkpoint.network, torch.from_numpy(crops))
        assert np.abs(got - expected).max() / np.abs(expected).max() <= 1e-5, kind


def golden_weights(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """The recipe of the goldens' README."""
    digest, state = hashlib.sha256(), {}
    for name, shape, _ in json.loads((folder / "keys.json").read_text()):
        rng, leaf = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            values: Any = np.zeros(shape, np.int64)
        elif leaf == "running_mean" or leaf == "bias":
            values = (rng.standard_normal(shape) * 0.1).astype(np.float32)
        elif leaf == "running_var" or len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            scale = math.sqrt(2 / math.prod(shape[1:])) * (meta["conv_scale"] if len(shape) == 4 else 1)
            values = (rng.standard_normal(shape) * scale).astype(np.float32)
        digest.update(name.encode() + values.tobytes())
        state[name] = torch.from_numpy(values)
    assert digest.hexdigest() == meta["weights_sha256"]
    return state


def golden_inputs(height: int, width: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    blocks = np.random.default_rng(1).integers(0, 256, (2, height // 32, width // 32, 3), dtype=np.uint8)
    crops = {"": noise, "blocks_": blocks.repeat(32, axis=1).repeat(32, axis=2)}
    mean, std = np.array(Feed().mean, np.float32), np.array(Feed().std, np.float32)
    return {
        kind: np.ascontiguousarray(((crop / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
        for kind, crop in crops.items()
    }


# Our own.


def test_our_own_checkpoint_reads_back_as_it_was_written(own: Path, network: Network, images):
    checkpoint = read_checkpoint(own)
    assert checkpoint.dialect == "reidserve"
    assert checkpoint.architecture == checkpoint.network.architecture == SMALL
    assert checkpoint.feeding == FEED
    assert checkpoint.metadata["epoch"] == "12"
    assert checkpoint.sha256 == hashlib.sha256(own.read_bytes()).hexdigest()
    assert not checkpoint.network.training
    np.testing.assert_array_equal(feature(checkpoint.network, images), feature(network, images))
    frozen = [name for name, weight in checkpoint.network.named_parameters() if not weight.requires_grad]
    assert frozen == ["neck.bias"]


@pytest.mark.parametrize(
    "choices",
    [
        {"ibn": "b", "pooling": "gem", "embedding_dim": 24, "feature": "before_neck"},
        {"neck": "no", "last_stride": 2, "stem_pool": "ceil", "stem_relu": False, "classes": 0},
    ],
)
def test_our_own_checkpoint_keeps_every_choice(path: Path, choices: dict[str, Any], images):
    written = build_network(small(**choices), seed=0).eval()
    write_checkpoint(path, written, {})
    checkpoint = read_checkpoint(path)
    assert checkpoint.architecture == written.architecture
    assert checkpoint.feeding is None
    np.testing.assert_array_equal(feature(checkpoint.network, images), feature(written, images))


def test_equal_networks_give_equal_bytes(own: Path, network: Network, path: Path):
    write_checkpoint(path, network, {**FEED.to_metadata(), "epoch": "12"})
    assert path.read_bytes() == own.read_bytes()


def test_half_precision_is_read_exactly(path: Path, network: Network):
    halves: Any = Network(SMALL)
    halves.load_state_dict(network.state_dict())
    write_checkpoint(path, halves.half(), {})
    read = read_checkpoint(path).network.state_dict()
    assert read["backbone.conv1.weight"].dtype == torch.float32
    assert torch.equal(read["backbone.conv1.weight"], halves.backbone.conv1.weight.float())


@pytest.mark.parametrize("taken", ["architecture", "reidserve_format"])
def test_the_formats_own_names_are_no_metadata(path: Path, network: Network, taken: str):
    with pytest.raises(CheckpointError, match=f"may not be named {taken}"):
        write_checkpoint(path, network, {taken: "x"})


def test_a_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, network: Network, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(path, network, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"arch": "resnet50_ibn_a"}, "resnet50_ibn_a was asked for, the tensors are a resnet18_ibn_a's"),
        ({"dialect": "torchvision"}, "torchvision was asked for, the tensors are reidserve's"),
        ({"last_stride": 2}, "last_stride 2 was asked for, its own metadata say last_stride 1"),
        ({"stem_pool": "ceil"}, "stem_pool ceil was asked for, its own metadata say stem_pool padded"),
        ({"pooling": "gem"}, "pooling gem was asked for, its own metadata say pooling average"),
    ],
)
def test_what_our_own_checkpoint_says_of_itself_cannot_be_contradicted(own: Path, said: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(own, **said)


def test_what_agrees_with_our_own_checkpoint_may_be_said(own: Path):
    said: dict[str, Any] = {"arch": "resnet18_ibn_a", "dialect": "reidserve", "last_stride": 1, "pooling": "average"}
    assert read_checkpoint(own, **said).architecture == SMALL


def with_metadata(own: Path, path: Path, **changes: str | None) -> Path:
    data = own.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"] | changes
    header["__metadata__"] = {name: value for name, value in metadata.items() if value is not None}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reidserve_format": "2"}, "is of format 2, this reidserve reads format 1"),
        ({"architecture": None}, "metadata do not read"),
        ({"architecture": "[]"}, "metadata do not read: Expected `object`"),
        ({"architecture": '{"backbone": "resnet18"}'}, "it has, or lacks, classes, embedding_dim"),
        ({"architecture": '{"backbone": "vgg16"}'}, "metadata do not read: Invalid enum value 'vgg16'"),
        ({"resize": None}, "say how the network was fed, but not its resize"),
        ({"resize": '"sharp"'}, "metadata do not read: .*'sharp'"),
        ({"height": "tall"}, "height in the metadata is no JSON: 'tall'"),
        ({"height": "0"}, "height must be 1 to 4096 pixels, got 0"),
        ({"std": "[0, 1, 1]"}, "std above 0"),
        ({"mean": "[0.5]"}, "metadata do not read"),
    ],
)
def test_metadata_that_do_not_read_are_refused(own: Path, path: Path, changes: dict[str, str], message: str):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(with_metadata(own, path, **changes))


def test_metadata_of_another_network_are_refused(own: Path, path: Path):
    other = json.dumps(dataclasses.asdict(dataclasses.replace(SMALL, ibn="none")))
    with pytest.raises(CheckpointError, match=r"missing: .*layer1\.0\.bn1\.weight.*left over: .*layer1\.0\.bn1\.BN"):
        read_checkpoint(with_metadata(own, path, architecture=other))


def test_our_own_tensors_without_their_metadata_are_refused(path: Path):
    with pytest.raises(CheckpointError, match="has reidserve's tensors without their metadata"):
        read_checkpoint(save(hollow(shapes()), path))


# Every tensor is accounted for.


def read_by_the_feature(names: Any) -> list[str]:
    return [
        name for name in names if not name.endswith("num_batches_tracked") and not name.startswith(("class", "fc."))
    ]


STRONG = strong(ibn="a")


def damage(state: dict[str, Any], name: str, how: str) -> list[str]:
    """Damage one tensor; returns the names that the refusal must have."""
    tensor = state.pop(name)
    if how == "renamed":
        state[f"{name}_2"] = tensor
        return [name, f"{name}_2"]
    if how == "reshaped":
        state[name] = torch.ones(()).expand(tensor.shape[0] + 1, *tensor.shape[1:])
    return [name]


@pytest.mark.parametrize("how", ["removed", "renamed", "reshaped"])
@pytest.mark.parametrize("name", read_by_the_feature(STRONG))
def test_a_tensor_that_the_feature_reads_cannot_be_removed_renamed_or_reshaped(path: Path, name: str, how: str):
    state = dict(STRONG)
    expected = damage(state, name, how)
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(save(state, path), dialect="strong-baseline")
    assert all(f" {one}" in str(refusal.value) for one in expected)


OTHERS = {
    "torchvision": (bare(), {}),
    "ibn-net a": (bare(ibn="a"), {}),
    "ibn-net b": (bare(ibn="b"), {}),
    "torchvision bottlenecks": (bare(backbone="resnet50"), {}),
    "strong-baseline plain": (strong(), {}),
    "strong-baseline neck no": (strong(neck="no", ibn="a"), {}),
    "reidserve": (
        hollow(shapes(pooling="gem", embedding_dim=8)),
        {
            "reidserve_format": "1",
            "architecture": json.dumps(
                dataclasses.asdict(Architecture(backbone="resnet18", pooling="gem", embedding_dim=8, classes=5))
            ),
        },
    ),
}


def account_in_memory(state: dict[str, Any], metadata: dict[str, str]) -> None:
    reading = recognise(Contents(Path("weights"), "", state, metadata))
    account(reading.contents, reading.dialect, reading.architecture)


@pytest.mark.parametrize("how", ["removed", "renamed", "reshaped"])
@pytest.mark.parametrize("which", OTHERS)
def test_nor_can_one_in_any_other_dialect(which: str, how: str):
    whole, metadata = OTHERS[which]
    for name in read_by_the_feature(whole):
        state = dict(whole)
        expected = damage(state, name, how)
        with pytest.raises(CheckpointError) as refusal:
            account_in_memory(state, metadata)
        assert all(f" {one}" in str(refusal.value) for one in expected), name


def test_a_tensor_too_many_is_refused_by_name(path: Path):
    with pytest.raises(CheckpointError, match="left over: base.layer1.0.attention.weight"):
        read_checkpoint(save(STRONG | hollow({"base.layer1.0.attention.weight": (64,)}), path), last_stride=1)


def test_a_missing_neck_is_refused(path: Path):
    state = {name: tensor for name, tensor in STRONG.items() if not name.startswith("bottleneck.")}
    with pytest.raises(CheckpointError, match=r"has no neck: bottleneck\.weight, .* are missing"):
        read_checkpoint(save(state, path), dialect="strong-baseline")


def test_a_classifier_of_another_size_is_refused(path: Path):
    wrong = STRONG | hollow({"classifier.weight": (5, 2048)})
    with pytest.raises(CheckpointError, match=r"of another shape: classifier.weight \(expected 5x512, got 5x2048\)"):
        read_checkpoint(save(wrong, path), dialect="strong-baseline")
    wrong = bare() | hollow({"fc.bias": (4,)})
    with pytest.raises(CheckpointError, match=r"fc.bias \(expected 5, got 4\)"):
        read_checkpoint(save(wrong, path), dialect="torchvision")


def test_a_missing_classifier_is_said_and_harmless(path: Path, own: Path, images, network: Network):
    del (state := dict(STRONG))["classifier.weight"]
    checkpoint = read_checkpoint(save(state, path), dialect="strong-baseline")
    assert list(checkpoint.absent) == ["classifier.weight"]
    assert checkpoint.architecture.classes == 0
    assert any("not in the file: classifier.weight" in line for line in checkpoint.remarks)

    tensors = safetensors_torch.load_file(own)
    del tensors["classifier.weight"]
    safetensors_torch.save_file(tensors, path, dict(read_checkpoint(own).metadata))
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.absent) == ["classifier.weight"]
    np.testing.assert_array_equal(feature(checkpoint.network, images), feature(network, images))


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
def test_half_a_classifier_is_said_and_harmless(path: Path, name: str):
    del (state := bare())[name]
    checkpoint = read_checkpoint(save(state, path), dialect="torchvision")
    assert list(checkpoint.absent) == [name]
    assert {"fc.weight", "fc.bias"} - checkpoint.dead.keys() == {name}


def test_missing_counters_are_said_and_harmless(path: Path):
    state = {name: tensor for name, tensor in STRONG.items() if not name.endswith("num_batches_tracked")}
    checkpoint = read_checkpoint(save(state, path), dialect="strong-baseline")
    assert STRONG.keys() - state.keys() == checkpoint.absent.keys()
    assert checkpoint.network.backbone.bn1.num_batches_tracked == 0
    assert any("and 19 more: counts training batches" in line for line in checkpoint.remarks)


def test_dead_tensors_are_said(path: Path):
    dead = {"base.fc.weight": (1000, 512), "base.fc.bias": (1000,), "gap.p": (1,), "n_averaged": ()}
    checkpoint = read_checkpoint(save(STRONG | hollow(dead), path), dialect="strong-baseline")
    counters = {name for name in STRONG if name.endswith("num_batches_tracked")}
    assert checkpoint.dead.keys() == {*dead, *counters, "classifier.weight"}
    assert "not read: base.fc.weight, base.fc.bias: the ImageNet classifier, which the network never reads" in (
        checkpoint.remarks
    )


@pytest.mark.parametrize("name", ["base.layer3.1.bn1.IN.weight", "base.bn1.running_mean", "classifier.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(path: Path, name: str, value: float):
    state = STRONG | {name: torch.full((), value).expand(STRONG[name].shape)}
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        read_checkpoint(save(state, path), dialect="strong-baseline")


def test_a_weight_beyond_half_precision_is_no_infinity_here(path: Path):
    state = STRONG | {"bottleneck.weight": torch.full((512,), 1e38, dtype=torch.bfloat16)}
    weight = read_checkpoint(save(state, path), dialect="strong-baseline").network.neck.weight
    assert weight.isfinite().all()


def test_a_negative_variance_is_refused(path: Path):
    state = STRONG | {"bottleneck.running_var": torch.full((512,), -0.1)}
    with pytest.raises(CheckpointError, match="bottleneck.running_var holds a negative variance"):
        read_checkpoint(save(state, path), dialect="strong-baseline")


@pytest.mark.parametrize("kind", ["float64", "int8", "complex64"])
def test_weights_of_another_type_are_refused(path: Path, kind: str):
    state = STRONG | {"bottleneck.weight": torch.ones(512).to(getattr(torch, kind))}
    with pytest.raises(
        CheckpointError, match=f"bottleneck.weight is {kind}, float32, float16 or bfloat16 was expected"
    ):
        read_checkpoint(save(state, path), dialect="strong-baseline")


# What tensors do not tell.


def test_a_plain_strong_baseline_wants_last_stride_and_stem_pool(path: Path):
    save(strong(), path)
    with pytest.raises(CheckpointError, match=r"--last-stride 1 or 2 .*--stem-pool padded \(strong-baseline\) or halv"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"Say --stem-pool .*Or say --dialect strong-baseline"):
        read_checkpoint(path, last_stride=1)
    checkpoint = read_checkpoint(path, last_stride=2, stem_pool="halving")
    assert (checkpoint.architecture.last_stride, checkpoint.architecture.stem_pool) == (2, "halving")
    assert not checkpoint.architecture.stem_relu
    assert checkpoint.feeding is None


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
    assert "gap.p" in read_checkpoint(path, last_stride=1, pooling="average").dead
    checkpoint = read_checkpoint(path, last_stride=1, pooling="gem")
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
        ({"dialect": "ibn-net"}, CheckpointError, "ibn-net was asked for, the tensors are strong-baseline's"),
        ({"dialect": "fastreid"}, CheckpointError, r"\(the dialects are reidserve, strong-baseline, torchvision, ibn"),
        ({"last_stride": 3}, ExportError, "last_stride must be one of 1, 2, got 3"),
    ],
)
def test_what_the_tensors_contradict_is_refused(path: Path, said: dict[str, Any], error: Any, message: str):
    with pytest.raises(error, match=message):
        read_checkpoint(save(STRONG, path), **said)


FOREIGN = {
    "fastreid_bot_R50_ibn": "fast-reid",
    "fastreid_v011_bot_R50_ibn": "fast-reid",
    "layumi_ft_net": "layumi",
    "layumi_pcb": "layumi",
    "pcb_official": "the official PCB",
    "torchreid_resnet50_ibn_a": "torchreid",
    "transreid_market_vit_transreid_stride_keys": "TransReID, .* camera id",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_projects_that_are_not_read_yet_are_refused_by_name(shared: Path, path: Path, name: str):
    keys = json.loads((shared / "data/goldens/dialects" / name / "keys.json").read_text())
    save(hollow({name: tuple(shape) for name, shape, _ in keys}), path)
    for dialect in (None, *DIALECTS):
        with pytest.raises(CheckpointError, match=f"looks like a checkpoint of {FOREIGN[name]}.*not read yet"):
            read_checkpoint(path, dialect=dialect)


def test_tensors_of_nobody_are_refused(path: Path):
    with pytest.raises(CheckpointError, match="of no known dialect .*: its tensors are bias, weight"):
        read_checkpoint(save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, path))


# Files.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 60},
        lambda state: {"model": state, "optimizer": {"param_groups": []}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "rank1": np.float32(0.931), "mAP": np.float64(0.852)},
    ],
    ids=["state_dict", "model", "module", "_orig_mod", "both", "averaged", "numpy scalars"],
)
def test_wrappers_are_taken_off(path: Path, wrap: Any):
    checkpoint = read_checkpoint(save(wrap(STRONG), path), dialect="strong-baseline")
    assert checkpoint.architecture == SMALL
    assert "base.bn1.num_batches_tracked" in checkpoint.dead


def test_the_older_format_of_torch_is_read(path: Path):
    save({"state_dict": STRONG, "rank1": np.float32(0.5)}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path, last_stride=1).architecture == SMALL


def test_a_foreign_safetensors_is_read_by_its_names(path: Path):
    safetensors_torch.save_file({name: tensor.contiguous() for name, tensor in STRONG.items()}, path)
    assert read_checkpoint(path, last_stride=1).dialect == "strong-baseline"


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["beside", "among", "alone"])
def test_a_pickle_that_would_run_code_does_not_run(path: Path, tmp_path: Path, where: str, zipped: bool):
    runs = Runs(tmp_path / "ran")
    loaded = {"beside": {"state_dict": STRONG, "hook": runs}, "among": STRONG | {"base.hook": runs}, "alone": runs}
    save(loaded[where], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"wants posix\.mkdir, which could run code, so nothing of it was loaded"):
        read_checkpoint(path, dialect="strong-baseline")
    assert not runs.path.exists()
    path.write_bytes(pickle.dumps(loaded["alone"]))
    with pytest.raises(CheckpointError):
        read_checkpoint(path, dialect="strong-baseline")
    assert not runs.path.exists()


class NumpyRuns:
    """Reaches for code through a type of NumPy that is let through by name."""

    def __reduce__(self) -> Any:
        return np.dtype, ("f4",), {"a": 1}


def test_the_names_that_are_let_through_stand_for_nothing(path: Path):
    let_through_before = torch.serialization.get_safe_globals()
    checkpoint = read_checkpoint(save({"state_dict": STRONG, "kind": NumpyRuns()}, path), last_stride=1)
    assert checkpoint.architecture == SMALL
    with pytest.raises(CheckpointError, match=r"wants numpy.*_reconstruct, which could run code"):
        read_checkpoint(save({"state_dict": STRONG, "array": np.ones(3)}, path), last_stride=1)
    assert torch.serialization.get_safe_globals() == let_through_before


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_is_refused_and_the_refusal_says_how_to_save_a_state_dict(path: Path, zipped: bool):
    save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"container\.Sequential.*torch\.save\(model\.state_dict\(\), path\)"):
        read_checkpoint(path)


def test_other_things_than_a_state_dict_are_refused(path: Path):
    for value, message in (
        (torch.ones(3), "holds Tensor, a state dict with tensors was expected"),
        ([], "holds list, a state dict with tensors was expected"),
        ({"net": {}, "epoch": 3}, "under state_dict or model: these are no tensors: net, epoch"),
        (STRONG | {"epoch": 3}, "these are no tensors: epoch"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(save(value, path))


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, own: Path, part: float):
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(STRONG, zipped)
    torch.save(STRONG, legacy, _use_new_zipfile_serialization=False)
    for data in (own.read_bytes(), zipped.getvalue(), legacy.getvalue()):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(CheckpointError, match="is no whole|is empty"):
            read_checkpoint(path, dialect="strong-baseline")


def test_a_damaged_file_is_refused_and_nothing_else_escapes(path: Path):
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    torch.save({name: STRONG[name] for name in list(STRONG)[:20]}, buffer, _use_new_zipfile_serialization=False)
    for _ in range(200):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        where = random.integers(0, len(data), 3)
        data[where] = random.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        with pytest.raises(CheckpointError):
            read_checkpoint(path, dialect="strong-baseline")


def test_no_file_a_folder_and_an_empty_file_are_refused(path: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)
    path.touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(path)


# Starting from another network's weights.


def test_pretrained_weights_are_every_tensor_but_the_classifier(own: Path, network: Network):
    start = built(dataclasses.replace(SMALL, classes=9, last_stride=2))
    classifier = start.classifier.weight.detach().clone()
    left = load_pretrained(start, own)
    assert [line.partition(":")[0] for line in left] == ["classifier.weight"]
    assert torch.equal(start.classifier.weight, classifier)
    source = network.state_dict()
    for name, tensor in start.state_dict().items():
        assert name == "classifier.weight" or torch.equal(tensor, source[name]), name
    assert start.training
    assert not start.neck.bias.requires_grad


def test_an_imagenet_networks_weights_leave_the_neck_as_initialised(path: Path):
    start = built(Architecture(backbone="resnet18", ibn="b", classes=5, embedding_dim=8))
    embedding = start.embedding.weight.detach().clone()
    left = load_pretrained(start, save(bare(ibn="b", classes=1000), path))
    assert [line.partition(":")[0] for line in left][:2] == ["fc.weight", "fc.bias"]
    assert left[2].startswith("embedding.weight, embedding.bias, neck.weight, neck.bias")
    assert left[2].endswith("not in the file, stays as initialised")
    assert torch.equal(start.embedding.weight, embedding)
    assert start.backbone.conv1.weight.eq(1).all()


def test_a_strong_baselines_neck_is_left_out_where_there_is_none(path: Path):
    start = built(dataclasses.replace(SMALL, neck="no"))
    left = load_pretrained(start, save(STRONG, path))
    assert "bottleneck.weight: the network to start has none" in left


def test_pretrained_weights_of_another_backbone_are_refused(path: Path):
    start = built(dataclasses.replace(SMALL, ibn="none"))
    with pytest.raises(CheckpointError, match="is a resnet18_ibn_a, the network to start is a resnet18"):
        load_pretrained(start, save(STRONG, path))


def test_pretrained_weights_of_another_shape_are_refused_and_nothing_is_taken(path: Path, own: Path):
    start = built(dataclasses.replace(SMALL, embedding_dim=8))
    before = start.backbone.conv1.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"neck\.weight is \(512,\), the network to start has \(8,\)"):
        load_pretrained(start, own)
    assert torch.equal(start.backbone.conv1.weight, before)
    with pytest.raises(CheckpointError, match="left over: base.more"):
        load_pretrained(start, save(STRONG | hollow({"base.more": (3,)}), path))
