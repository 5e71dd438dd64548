import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from reidserve.commands.export import make_feeding
from reidserve.datasets import read_crops
from reidserve.embed import Preprocessing, open_embedder, read_artifact, read_image
from reidserve.errors import ExportError, OutputExistsError
from reidserve.evaluate import embed_crops
from tests.conftest import foreign_model, run_command, save_onnx, write_crops

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from reidserve.export.checkpoints import Feed, read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.convert import Feeding  # noqa: E402
from reidserve.export.convert.feeding import feed_by_hand  # noqa: E402
from reidserve.export.convert.from_checkpoint import export_checkpoint, trace  # noqa: E402
from reidserve.export.model import Architecture, Network, StemPool, build_network, check_stripes  # noqa: E402
from reidserve.export.model.architecture import LastStride  # noqa: E402

FEED = Feed(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), height=64, width=32)
FEEDING = Feeding(
    height=64,
    width=32,
    resize="bilinear",
    preprocessing=Preprocessing(mean=FEED.mean, std=FEED.std, colour="rgb"),
)


def lively_network(architecture: Architecture) -> Network:
    """A network whose norms and statistics are not those of birth, so that leaving one out would show."""
    network = build_network(architecture, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif name.endswith(("running_var", "weight")) and tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


VARIANTS = {
    "ibn-a": Architecture(backbone="resnet18", ibn="a", classes=5),
    "ibn-b": Architecture(backbone="resnet18", ibn="b", classes=5),
    "bottlenecks": Architecture(backbone="resnet50", ibn="a", classes=5),
    "no neck": Architecture(backbone="resnet18", neck="no", classes=5),
    "before the neck": Architecture(backbone="resnet18", feature="before_neck", classes=5),
    "gem": Architecture(backbone="resnet18", pooling="gem", classes=5),
    "embedding": Architecture(backbone="resnet18", embedding_dim=24, classes=5),
    "stem": Architecture(backbone="resnet18", stem_relu=False, stem_pool="ceil", last_stride=2, classes=5),
    "parts": Architecture(backbone="resnet18", parts=4, embedding_dim=6, feature="pooled", classes=5),
    "parts after their necks": Architecture(backbone="resnet18", parts=2, embedding_dim=6, classes=5),
    "non-local": Architecture(backbone="resnet18", non_local=(0, 0, 1, 0), neck_relu=True, classes=5),
    "no classifier": Architecture(backbone="resnet18", ibn="a"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    write_checkpoint(path, lively_network(VARIANTS["ibn-a"]), FEED.to_metadata())
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_artifact_computes_what_the_network_does_in_torch(variant: str, tmp_path: Path):
    network = lively_network(VARIANTS[variant])
    write_checkpoint(tmp_path / "c.safetensors", network, {})
    made = export_checkpoint(read_checkpoint(tmp_path / "c.safetensors"), tmp_path / "model", FEEDING)
    assert made.difference < 1e-6
    batch = np.random.default_rng(0).integers(0, 256, (5, 64, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = network(torch.from_numpy(feed_by_hand(batch, FEEDING.preprocessing)))
    expected = torch.nn.functional.normalize(features).numpy()
    embeddings = open_embedder(tmp_path / "model").embed(batch)
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-6)
    alone = np.concatenate([open_embedder(tmp_path / "model").embed(image[np.newaxis]) for image in batch[:2]])
    np.testing.assert_array_equal(alone, embeddings[:2])


def test_the_contract_says_what_the_network_is(checkpoint: Path, tmp_path: Path):
    read = read_checkpoint(checkpoint)
    export_checkpoint(read, tmp_path / "model", FEEDING)
    contract = read_artifact(tmp_path / "model").contract
    network = contract.network
    assert (network.backbone, network.neck, network.pooling) == ("resnet18_ibn_a", "bnneck", "average")
    assert (network.feature, network.flip) == ("after_neck", False)
    assert (contract.source.kind, contract.source.dialect) == ("checkpoint", "reidserve")
    assert contract.source.sha256 == read.sha256
    assert (contract.height, contract.width, contract.dim) == (64, 32, 512)


def test_the_contract_counts_the_parts_and_their_dimensions(tmp_path: Path):
    write_checkpoint(tmp_path / "c.safetensors", lively_network(VARIANTS["parts"]), {})
    export_checkpoint(read_checkpoint(tmp_path / "c.safetensors"), tmp_path / "model", FEEDING)
    contract = read_artifact(tmp_path / "model").contract
    assert contract.dim == 4 * 512
    assert (contract.network.pooling, contract.network.feature) == ("average, 4 parts", "before_neck")


def test_equal_checkpoints_give_equal_bytes(checkpoint: Path, tmp_path: Path):
    for name in ("one", "two"):
        export_checkpoint(read_checkpoint(checkpoint), tmp_path / name, FEEDING)
    assert [path.read_bytes() for path in sorted((tmp_path / "one").iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "two").iterdir())
    ]


@pytest.mark.parametrize("variant", ["ibn-a", pytest.param("parts", marks=pytest.mark.slow)])
def test_a_flipping_artifact_averages_as_evaluation_does(variant: str, tmp_path: Path):
    write_checkpoint(tmp_path / "c.safetensors", lively_network(VARIANTS[variant]), {})
    read = read_checkpoint(tmp_path / "c.safetensors")
    for flip in (False, True):
        made = export_checkpoint(read, tmp_path / f"flip-{flip}", FEEDING, flip=flip)
        assert made.difference < 1e-6
    plain, flipping = (open_embedder(tmp_path / f"flip-{flip}") for flip in (False, True))
    write_crops(tmp_path / "crops", pids=4)
    crops = read_crops(tmp_path / "crops")
    straight, averaged = (embed_crops(crops, crops, plain, flip=flip)[0].embeddings for flip in (False, True))
    embeddings = embed_crops(crops, crops, flipping)[0].embeddings
    np.testing.assert_allclose(embeddings, averaged, rtol=0, atol=1e-5)
    assert np.abs(embeddings - straight).max() > 1e-3

    batch = np.stack([flipping.prepare(read_image(crop.path)) for crop in crops])
    mirrored = flipping.embed(np.ascontiguousarray(batch[:, :, ::-1]))
    np.testing.assert_allclose(mirrored, embeddings, rtol=0, atol=1e-6)
    alone = np.concatenate([flipping.embed(image[np.newaxis]) for image in batch[:3]])
    np.testing.assert_allclose(alone, embeddings[:3], rtol=0, atol=1e-6)

    contracts = [read_artifact(tmp_path / f"flip-{flip}").contract for flip in (False, True)]
    assert [contract.network.flip for contract in contracts] == [False, True]
    assert contracts[0].identity != contracts[1].identity


def test_a_graph_that_is_not_the_network_is_left_nowhere(checkpoint: Path, tmp_path: Path):
    read = read_checkpoint(checkpoint)
    # In training mode BatchNorm's statistics would be the batch's; here they are moved after the graph was traced.
    calls = []

    def move(module, arguments, output):
        calls.append(1)
        return output + 0.01 * (len(calls) > 1)

    read.network.pooling.register_forward_hook(move)
    with pytest.raises(ExportError, match="differs from the model"):
        export_checkpoint(read, tmp_path / "model", FEEDING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("height", "rows", "last_stride"), [(128, 8, 1), (256, 8, 2), (4, 1, 1)])
def test_a_height_that_parts_do_not_divide_is_refused_in_words(
    tmp_path: Path, capfd, height: int, rows: int, last_stride: LastStride
):
    """torch's own refusal is its whole graph, on the standard output."""
    network = build_network(Architecture(backbone="resnet18", parts=6, last_stride=last_stride)).eval()
    step = 96 * last_stride
    with pytest.raises(ExportError, match=f"has {rows} rows at {height}x32, .* 6 parts .* of {step}, {2 * step} and"):
        trace(network, height=height, width=32)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stem_pool", get_args(StemPool))
def test_the_heights_that_are_named_are_divided(stem_pool: StemPool):
    strides: tuple[tuple[LastStride, int], ...] = ((1, 96), (2, 192), (1, 384))
    for last_stride, height in strides:
        architecture = Architecture(backbone="resnet18", parts=6, stem_pool=stem_pool, last_stride=last_stride)
        check_stripes(architecture, height=height, width=32)
        with pytest.raises(ExportError, match="6 parts"):
            check_stripes(architecture, height=height + 64, width=32)


def test_an_occupied_folder_is_refused_before_anything_is_traced(checkpoint: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match="is no model"):
        export_checkpoint(read_checkpoint(checkpoint), tmp_path, FEEDING, force=True)


def test_the_command_exports_our_own_checkpoint_by_its_metadata(checkpoint: Path, tmp_path: Path):
    write_crops(tmp_path / "crops", pids=2)
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path / "model", "--images", tmp_path / "crops", "--json"]
    result = run_command("reid-export", *arguments)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["difference"] < 1e-6
    assert told["contract"]["network"]["flip"] is False
    assert sum(told["operators"]["before"].values()) == 107
    assert sum(told["operators"]["after"].values()) == 81
    assert told["operators"]["after"]["Conv"] == 20
    preprocessing = told["contract"]["preprocessing"]
    assert preprocessing == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "colour": "rgb"}
    assert (told["contract"]["height"], told["contract"]["width"]) == (64, 32)
    assert any("classifier.weight" in remark for remark in told["remarks"])


def test_the_command_averages_if_it_is_told_to_and_says_so(checkpoint: Path, tmp_path: Path):
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path / "model", "--flip"]
    result = run_command("reid-export", *arguments)
    assert result.returncode == 0, result.stderr
    assert "512 dimensions, the mean of the crop and its mirror image" in result.stdout
    assert "115 operators, 88 after folding" in result.stdout
    assert read_artifact(tmp_path / "model").contract.network.flip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --checkpoint or --onnx"),
        (["--checkpoint", "a", "--onnx", "b"], "expected either --checkpoint or --onnx"),
        (["--onnx", "a", "--size", "64x32", "--dialect", "reidserve"], "--dialect is of checkpoints, not of --onnx"),
        (["--checkpoint", "a", "--output", "f"], "--output is of --onnx"),
        (["--onnx", "a"], "--size HEIGHTxWIDTH is needed"),
    ],
)
def test_options_that_do_not_fit_together_are_wrong_usage(arguments, message: str, tmp_path: Path):
    result = run_command("reid-export", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr


def test_what_is_said_against_our_own_checkpoint_is_done_and_remarked(checkpoint: Path, tmp_path: Path):
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path / "model", "--colour", "bgr", "--json"]
    told = json.loads(run_command("reid-export", *arguments).stdout)
    assert told["contract"]["preprocessing"]["colour"] == "bgr"
    assert "--colour bgr was said in place of what the file tells" in told["remarks"]


def test_imagenets_numbers_follow_the_colour_order(tmp_path: Path):
    save_onnx(foreign_model(), tmp_path / "small.onnx")
    arguments = ["--onnx", "small.onnx", "--size", "64x32", "--colour", "bgr", "--json"]
    told = json.loads(run_command("reid-export", *arguments, cwd=tmp_path).stdout)
    assert told["contract"]["preprocessing"]["mean"] == [0.406, 0.456, 0.485]


def test_so_do_a_checkpoints_numbers():
    said = dict.fromkeys(("size", "mean", "std", "colour", "resize")) | {"colour": "bgr"}
    assert make_feeding(said, told=FEED).preprocessing.mean == (0.6, 0.5, 0.4)
    assert make_feeding(said, told=FEED).preprocessing.std == (0.3, 0.25, 0.2)
    assert make_feeding(said, told=replace(FEED, colour="bgr")).preprocessing.mean == (0.4, 0.5, 0.6)
    assert make_feeding(said | {"mean": "0.1,0.2,0.3"}, told=FEED).preprocessing.mean == (0.1, 0.2, 0.3)


def test_a_bad_image_to_compare_on_is_named_and_nothing_is_written(checkpoint: Path, tmp_path: Path):
    write_crops(tmp_path / "crops", pids=1)
    (tmp_path / "crops" / "0009_c1s1_000000_00.jpg").write_text("no image")
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path / "model", "--images", tmp_path / "crops"]
    result = run_command("reid-export", *arguments)
    assert result.returncode == 1
    assert "0009_c1s1_000000_00.jpg: expected a JPEG" in result.stderr
    assert not (tmp_path / "model").exists()


def test_a_size_that_the_network_cannot_take_is_refused_in_one_line(checkpoint: Path, tmp_path: Path):
    result = run_command("reid-export", "--checkpoint", checkpoint, "--out", tmp_path / "model", "--size", "16x16")
    assert result.returncode == 1
    assert "torch cannot export the network at 16x16" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
