import pytest

torch = pytest.importorskip("torch")

from reidserve.export.model import build_network, parse_architecture  # noqa: E402
from reidserve.export.train.settings import LEARNING, Settings, Stage  # noqa: E402
from reidserve.export.train.stages import count_frozen, let_learn, part_of, place_of  # noqa: E402


@pytest.fixture(scope="module")
def network():
    return build_network(parse_architecture("resnet18_ibn_a", classes=5), seed=0)


def test_epochs_count_through_all_stages():
    settings = Settings(stages=(Stage(epochs=2), Stage(epochs=1), Stage(epochs=3)))
    places = [place_of(settings, epoch) for epoch in range(1, 7)]
    assert [(place.number, place.epoch, place.is_last) for place in places] == [
        (1, 1, False),
        (1, 2, True),
        (2, 1, True),
        (3, 1, False),
        (3, 2, False),
        (3, 3, True),
    ]
    assert [place.stage for place in places[1:3]] == [settings.stages[0], settings.stages[1]]


def test_every_parameter_belongs_to_one_of_the_parts(network):
    parts = {part_of(name) for name, _ in network.named_parameters()}
    assert parts == set(LEARNING)
    assert part_of("backbone.layer3.1.bn1.IN.weight") == "layer3"
    assert part_of("backbone.bn1.weight") == "stem"
    assert part_of("neck.weight") == part_of("classifier.weight") == "head"


@pytest.mark.parametrize("learns", [("head",), ("layer4", "head"), ("stem",), ("layer1", "layer3"), ("all",)])
def test_what_does_not_learn_takes_no_gradient_and_its_norms_keep_their_statistics(network, learns):
    learnable = {name: value for name, value in network.named_parameters() if name != "neck.bias"}
    let_learn(network, learnable, learns)
    chosen = set(LEARNING) if learns == ("all",) else set(learns)
    assert {part_of(name) for name, value in learnable.items() if value.requires_grad} == chosen
    assert not network.neck.bias.requires_grad
    norms = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    norms["neck"] = network.neck
    assert {part_of(name) for name, norm in norms.items() if norm.training} == chosen
    before = {name: value.clone() for name, value in network.named_buffers()}
    scores, features = network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    moved = {part_of(name) for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    assert moved == chosen
    assert (scores.shape, features.shape) == ((4, 5), (4, 512))


def test_frozen_parameters_are_counted_as_in_the_published_note():
    # ResNet-18 with a classifier of 10 classes that has a bias: 11,176,512 of 11,181,642.
    network = build_network(parse_architecture("resnet18", classes=10))
    frozen, total = count_frozen(network, ("head",))
    assert frozen == 11_176_512
    assert total == 11_176_512 + 2 * 512 + 512 * 10
    assert count_frozen(network, ("all",)) == (0, total)
    assert count_frozen(network, ("layer4", "head"))[0] == frozen - sum(
        value.numel() for value in network.backbone.layer4.parameters()
    )
