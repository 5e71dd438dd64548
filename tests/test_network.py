import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from reidserve.errors import ExportError

torch = pytest.importorskip("torch", reason="needs reidserve[train]")

from reidserve.export import model  # noqa: E402
from reidserve.export.model import Architecture, Network, parse_architecture  # noqa: E402
from reidserve.export.model.network import GeneralisedMean  # noqa: E402
from reidserve.export.model.resnet import InstanceBatchNorm, NonLocal  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def build_network(architecture: Architecture, seed: int | None = None, **choices: Any) -> Any:
    return model.build_network(architecture, seed=seed, **choices)


def small(**choices: Any) -> Architecture:
    facts: dict[str, Any] = {"backbone": "resnet18", "classes": 5} | choices
    return Architecture(**facts)


@pytest.fixture
def images() -> Any:
    return torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def with_lively_norms(network: Any) -> Any:
    """Norms that are not the identity they start as."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_var", "weight")) and tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
    return network


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
@pytest.mark.parametrize("ibn", ["none", "a", "b"])
def test_every_name_parses_to_the_architecture_that_has_it(backbone: str, ibn: str):
    name = backbone if ibn == "none" else f"{backbone}_ibn_{ibn}"
    architecture = parse_architecture(name, classes=3)
    assert (architecture.backbone, architecture.ibn, architecture.classes) == (backbone, ibn, 3)
    assert architecture.name == name


@pytest.mark.parametrize("name", ["resnet152", "resnet50-ibn-a", "resnet50_ibn_none", "ResNet50", ""])
def test_another_name_is_refused(name: str):
    with pytest.raises(ExportError, match="alone or with _ibn_a or _ibn_b, got"):
        parse_architecture(name)


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        ("backbone", "resnet152"),
        ("ibn", "c"),
        ("last_stride", 3),
        ("last_stride", True),
        ("neck", "bn"),
        ("pooling", "max"),
        ("embedding_dim", 0),
        ("embedding_dim", 2.5),
        ("classes", -1),
        ("feature", "after"),
        ("stem_relu", 1),
        ("stem_pool", "none"),
        ("neck_relu", 0),
        ("parts", -1),
        ("non_local", (0, 3, 0, 0)),
    ],
)
def test_an_architecture_checks_itself_on_birth(choice: str, value: Any):
    with pytest.raises(ExportError, match=f"{choice} must be .*, got"):
        small(**{choice: value})


def test_training_gives_scores_and_the_feature_before_the_neck_and_evaluation_the_feature(images):
    network = with_lively_norms(build_network(small(), seed=0))
    scores, before = network(images)
    assert scores.shape == (2, 5)
    assert before.shape == (2, 512)
    network.eval()
    with torch.inference_mode():
        after = network(images)
        assert after.shape == (2, 512)
        pooled = network.backbone(images).mean((2, 3))
        neck = network.neck
        by_hand = (pooled - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight + neck.bias
    torch.testing.assert_close(after, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neck", ["bnneck", "no"])
def test_the_feature_is_taken_before_or_after_the_neck_as_the_architecture_says(images, neck: str):
    after = with_lively_norms(build_network(small(neck=neck), seed=0)).eval()
    before = Network(dataclasses.replace(after.architecture, feature="before_neck")).eval()
    before.load_state_dict(after.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(before(images), after.backbone(images).mean((2, 3)))
        assert torch.equal(before(images), after(images)) == (neck == "no")


def test_an_embedding_layer_stands_between_pooling_and_neck(images):
    network = build_network(small(embedding_dim=24), seed=0)
    scores, before = network(images)
    assert (scores.shape, before.shape) == ((2, 5), (2, 24))
    assert network.neck.num_features == 24
    assert network.eval()(images).shape == (2, 24)


def test_a_network_without_classes_evaluates_and_does_not_train(images):
    network = build_network(small(classes=0))
    assert network.eval()(images).shape == (2, 512)
    with pytest.raises(RuntimeError, match="no classifier to train"):
        network.train()(images)


def test_the_necks_bias_is_frozen_at_0_and_its_classifier_has_none():
    network = build_network(small(), seed=0)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["neck.bias"]
    assert not network.neck.bias.any()
    assert network.classifier.bias is None
    assert network.classifier.weight.detach().std().item() == pytest.approx(0.001, rel=0.1)


def test_without_a_neck_the_classifier_has_a_bias():
    network = build_network(small(neck="no"), seed=0)
    assert network.neck is None
    assert network.classifier.bias.shape == (5,)


@pytest.mark.parametrize("training", [True, False])
def test_ibn_a_is_instance_norm_on_half_of_the_channels_and_batch_norm_on_the_rest(training: bool):
    norm = with_lively_norms(InstanceBatchNorm(6)).train(training)
    x = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 2 + 1
    first, second = x[:, :3], x[:, 3:]

    def scale(values, weight, bias):
        return values * weight[:, None, None] + bias[:, None, None]

    mean, var = first.mean((2, 3), keepdim=True), first.var((2, 3), unbiased=False, keepdim=True)
    expected_first = scale((first - mean) / (var + 1e-5).sqrt(), norm.IN.weight, norm.IN.bias)
    if training:
        mean, var = second.mean((0, 2, 3)), second.var((0, 2, 3), unbiased=False)
    else:
        mean, var = norm.BN.running_mean, norm.BN.running_var
    centred = second - mean.clone()[:, None, None]
    expected_second = scale(centred / (var.clone()[:, None, None] + 1e-5).sqrt(), norm.BN.weight, norm.BN.bias)
    expected = torch.cat((expected_first, expected_second), 1)
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_ibn_a_changes_the_first_norm_of_the_blocks_of_the_first_three_stages(backbone: str):
    with torch.device("meta"):
        network = Network(small(backbone=backbone, ibn="a"))
    changed = {name for name, module in network.backbone.named_modules() if isinstance(module, InstanceBatchNorm)}
    blocks = {"resnet18": (2, 2, 2), "resnet50": (3, 4, 6)}[backbone]
    assert changed == {f"layer{stage}.{b}.bn1" for stage, count in enumerate(blocks, 1) for b in range(count)}


def test_ibn_b_puts_instance_norm_after_the_stem_and_the_last_block_of_the_first_two_stages():
    with torch.device("meta"):
        network = Network(small(backbone="resnet50", ibn="b"))
    norms = [name for name, module in network.backbone.named_modules() if isinstance(module, torch.nn.InstanceNorm2d)]
    assert norms == ["bn1", "layer1.2.IN", "layer2.3.IN"]


def test_ibn_b_normalises_the_sum_of_block_and_shortcut():
    block = build_network(small(ibn="b")).backbone.layer1[1].eval()
    x = torch.randn(2, 64, 6, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        total = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))) + x
        mean, var = total.mean((2, 3), keepdim=True), total.var((2, 3), unbiased=False, keepdim=True)
        torch.testing.assert_close(block(x), ((total - mean) / (var + 1e-5).sqrt()).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("choices", "size"),
    [
        ({"last_stride": 1}, (8, 4)),
        ({"last_stride": 2}, (4, 2)),
        ({"backbone": "resnet50", "last_stride": 1}, (8, 4)),
        ({"backbone": "resnet50", "last_stride": 2}, (4, 2)),
    ],
)
def test_the_last_stride_decides_the_last_maps_size(choices: dict[str, Any], size: tuple[int, int]):
    backbone = build_network(small(**choices)).backbone.eval()
    with torch.inference_mode():
        assert backbone(torch.zeros(1, 3, 128, 64)).shape[2:] == size


def test_the_stems_relu_and_pools_differ(images):
    start = build_network(small(), seed=0)

    def stem(**choices: Any) -> Any:
        network = Network(small(**choices)).eval()
        network.load_state_dict(start.state_dict())
        backbone = network.backbone
        with torch.inference_mode():
            return backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))

    with torch.inference_mode():
        conv = start.backbone.eval().conv1(images) / (1 + 1e-5) ** 0.5
    windows = conv.reshape(2, 64, 16, 2, 8, 2)
    torch.testing.assert_close(stem(stem_pool="halving", stem_relu=False), windows.amax((3, 5)))
    torch.testing.assert_close(stem(stem_pool="halving"), windows.amax((3, 5)).relu())
    padded, ceil = stem(stem_pool="padded"), stem(stem_pool="ceil")
    assert padded.shape == ceil.shape == (2, 64, 16, 8)
    torch.testing.assert_close(padded[..., 1, 1], conv[..., 1:4, 1:4].amax((2, 3)).relu())
    torch.testing.assert_close(ceil[..., 0, 0], conv[..., 0:3, 0:3].amax((2, 3)).relu())


def test_gem_is_the_generalised_mean_and_the_plain_one_at_p_1():
    x = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]]]])
    pool = GeneralisedMean()
    with torch.no_grad():
        assert pool(x).item() == pytest.approx(((1 + 8 + 27 + 1e-18) / 4) ** (1 / 3), rel=1e-6)
        pool.p.fill_(1)
        assert pool(x).item() == pytest.approx(6 / 4, rel=1e-6)
    assert pool(x).requires_grad, "p is learned"


PARTED = {"parts": 4, "embedding_dim": 6, "last_stride": 1}


def test_parts_are_stripes_with_an_embedding_a_neck_and_a_classifier_each(images):
    network = with_lively_norms(build_network(small(**PARTED), seed=0)).eval()
    with torch.inference_mode():
        stripes = network.backbone(images).unflatten(2, (4, 1)).mean((3, 4)).transpose(1, 2)
        before, after = network.features(images)
        neck, classifier = network.neck, network.classifier
        scores = classifier(after)
        for part in range(4):
            own = slice(6 * part, 6 * part + 6)
            reduced = stripes[:, part] @ network.embedding.weight[part].T + network.embedding.bias[part]
            torch.testing.assert_close(before[:, part], reduced)
            centred = (reduced - neck.running_mean[own]) / (neck.running_var[own] + neck.eps).sqrt()
            torch.testing.assert_close(after[:, part], centred * neck.weight[own] + neck.bias[own])
            torch.testing.assert_close(scores[:, part], after[:, part] @ classifier.weight[part].T)
    scores, before = network.train()(images)
    assert (scores.shape, before.shape) == ((2, 4, 5), (2, 4, 6))


@pytest.mark.parametrize(("feature", "dim"), [("pooled", 512), ("before_neck", 6), ("after_neck", 6)])
def test_parts_are_brought_to_unit_length_and_interleaved(images, feature: str, dim: int):
    network = with_lively_norms(build_network(small(**PARTED, feature=feature), seed=0)).eval()
    with torch.inference_mode():
        chosen = dict(zip(("before_neck", "after_neck"), network.features(images), strict=True))
        parts = chosen.get(feature, network.pooling(network.backbone(images)))
        whole = network(images)
    assert whole.shape == (2, 4 * dim) == (2, network.architecture.feature_dim)
    for part in range(4):
        expected = parts[:, part] / parts[:, part].norm(dim=1, keepdim=True)
        torch.testing.assert_close(whole[:, part::4], expected)


def test_gem_pools_each_stripe():
    x = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, parts = GeneralisedMean(), GeneralisedMean(3)
        for part in range(3):
            torch.testing.assert_close(parts(x)[:, part], whole(x[:, :, 2 * part : 2 * part + 2]))


def test_a_relu_follows_the_neck_where_the_architecture_says_so(images):
    network = with_lively_norms(build_network(small(neck_relu=True), seed=0)).eval()
    plain = Network(dataclasses.replace(network.architecture, neck_relu=False)).eval()
    plain.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert (plain(images) < 0).any()
        assert torch.equal(network(images), plain(images).relu())


def test_a_classifier_divides_cosines_by_its_temperature(images):
    network = build_network(small(), seed=0)
    classifier = network.classifier
    plain, rows = torch.randn(3, 512), classifier.weight.detach().clone()
    torch.testing.assert_close(classifier(plain), plain @ rows.T)
    classifier.unit_features, classifier.unit_rows, classifier.temperature = True, True, 0.05
    cosines = torch.nn.functional.cosine_similarity(plain[:, None], rows[None], dim=2)
    classifier.eval()
    torch.testing.assert_close(classifier(plain), cosines / 0.05)
    assert torch.equal(classifier.weight, rows), "in evaluation nothing is overwritten"
    classifier.train()
    scores = classifier(plain)
    torch.testing.assert_close(scores, cosines / 0.05)
    torch.testing.assert_close(classifier.weight.norm(dim=1), torch.ones(5))
    scores.sum().backward()
    assert classifier.weight.grad.any()
    assert set(network.classifier.state_dict()) == {"weight"}


def test_a_head_starts_as_torchs_own_where_it_is_asked_to():
    normal, default = (build_network(small(embedding_dim=256), seed=0, head=head) for head in ("normal", "default"))
    assert torch.equal(normal.backbone.layer4[1].conv2.weight, default.backbone.layer4[1].conv2.weight)
    assert normal.embedding.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.01)
    assert default.embedding.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)
    assert normal.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert default.classifier.weight.std().item() == pytest.approx((256 * 3) ** -0.5, rel=0.1)


def test_a_non_local_block_adds_what_resembles_each_place():
    block = with_lively_norms(NonLocal(8)).eval()
    x = torch.randn(2, 8, 4, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        g, theta, phi = (conv(x).flatten(2) for conv in (block.g, block.theta, block.phi))
        likeness = theta.transpose(1, 2) @ phi / 12
        torch.testing.assert_close(block(x), block.W((likeness @ g.transpose(1, 2)).view(2, 1, 4, 3)) + x)
        assert not torch.allclose(block(x), x, atol=1e-2)
        assert torch.equal(NonLocal(8).eval()(x), x), "it begins as the identity"


def test_non_local_blocks_follow_the_last_blocks_of_their_stage(images):
    network = with_lively_norms(build_network(small(non_local=(0, 2, 1, 0)), seed=0)).eval()
    backbone = network.backbone
    order = []
    for name, module in backbone.named_modules():
        if name.count(".") == 1 and name.startswith(("layer", "NL_")):
            module.register_forward_hook(lambda module, given, got, name=name: order.append(name))
    with torch.inference_mode():
        backbone(images)
    assert order == [
        *("layer1.0", "layer1.1", "layer2.0", "NL_2.0", "layer2.1", "NL_2.1"),
        *("layer3.0", "layer3.1", "NL_3.0", "layer4.0", "layer4.1"),
    ]


def test_parameters_are_as_many_as_in_the_official_networks():
    with torch.device("meta"):
        imagenet = Network(Architecture(backbone="resnet50", ibn="a", neck="no", classes=1000))
        reid = Network(Architecture(backbone="resnet50", ibn="a", neck="bnneck", classes=751))
    assert sum(parameter.numel() for parameter in imagenet.parameters()) == 25_557_032
    assert len(imagenet.state_dict()) == 346
    # strong-baseline's network carries the ImageNet classifier along, two tensors more.
    dead = 1000 * 2048 + 1000
    assert sum(parameter.numel() for parameter in reid.parameters()) + dead == 27_099_176
    assert len(reid.state_dict()) + 2 == 352


def test_a_resnet_18_has_as_many_parameters_as_its_paper_says():
    with torch.device("meta"):
        network = Network(small(neck="no", classes=10))
    assert sum(parameter.numel() for parameter in network.backbone.parameters()) == 11_176_512
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_181_642


def test_equal_seeds_give_equal_weights_and_leave_torchs_own_randomness_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (build_network(small(), seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["backbone.conv1.weight"], other["backbone.conv1.weight"])


VARIANTS: list[dict[str, Any]] = [
    {"ibn": "a"},
    {"ibn": "b", "pooling": "gem", "last_stride": 2},
    {"backbone": "resnet50", "ibn": "a", "embedding_dim": 24, "stem_pool": "ceil"},
    {"neck": "no", "stem_relu": False, "stem_pool": "halving"},
    {"parts": 4, "embedding_dim": 6, "non_local": (0, 0, 1, 0)},
    {"parts": 2, "pooling": "gem", "feature": "pooled", "neck_relu": True},
]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:Converting a tensor to a Python boolean",  # InstanceNorm compares its channels
    "ignore:ONNX export mode is set to TrainingMode.EVAL",  # and has only one mode
)
@pytest.mark.parametrize("choices", VARIANTS)
def test_every_variant_exports_to_plain_operators_with_a_free_batch(choices: dict[str, Any], images, tmp_path):
    network = with_lively_norms(build_network(small(**choices), seed=0)).eval()
    path = tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (images,),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["pixels"],
        output_names=["feature"],
        dynamic_axes={"pixels": {0: "N"}, "feature": {0: "N"}},
    )
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    three = torch.cat((images, images[:1].flip(3)))
    with torch.inference_mode():
        expected = network(three).numpy()
    (got,) = session.run(None, {"pixels": three.numpy()})
    assert np.abs(got - expected).max() / np.abs(expected).max() <= 1e-5
    (alone,) = session.run(None, {"pixels": images[:1].numpy()})
    np.testing.assert_allclose(alone, got[:1], atol=1e-5 * np.abs(expected).max())


def test_a_step_of_training_moves_everything_but_the_frozen_bias(images):
    network = build_network(small(ibn="a", pooling="gem", embedding_dim=8), seed=0)
    scores, before = network(images)
    (scores.square().sum() + before.square().sum()).backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {name for name, _ in network.named_parameters()} - moved == {"neck.bias"}
