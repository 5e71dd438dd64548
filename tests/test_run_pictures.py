import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

torch = pytest.importorskip("torch")

from reidserve.datasets import Crop  # noqa: E402
from reidserve.datasets.synth import SynthSpec, write_dataset  # noqa: E402
from reidserve.evaluate.picture import RIGHT, WRONG  # noqa: E402
from reidserve.evaluate.report.canvas import PAGE, Panel, svg_axes  # noqa: E402
from reidserve.export.checkpoints import Feed  # noqa: E402
from reidserve.export.model import Network, build_network, parse_architecture  # noqa: E402
from reidserve.export.train import Material, Record, Settings, read_material  # noqa: E402
from reidserve.export.train.report.cells import fit, to_png  # noqa: E402
from reidserve.export.train.report.curves import comparison_panels, draw_curves, run_panels  # noqa: E402
from reidserve.export.train.report.first_batch import draw_first_batch, draw_identities  # noqa: E402
from reidserve.export.train.report.predictions import draw_predictions, draw_trial, predict  # noqa: E402
from reidserve.export.train.sampler import draw_batches  # noqa: E402
from reidserve.export.train.settings import BatchSettings, EvaluationSettings, InputSettings  # noqa: E402
from reidserve.export.train.validation import normalise  # noqa: E402

SMALL = Settings(
    input=InputSettings(height=64, width=32),
    batch=BatchSettings(identities=4, images=2),
    evaluation=EvaluationSettings(every=1),
)
FEED = Feed(height=64, width=32)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("shown")
    spec = SynthSpec(train_identities=6, test_identities=4, cameras=2, images_per_camera=2, junk=2, distractors=2)
    write_dataset(root / "data", spec)
    return read_material(root / "data", SMALL, scratch=root)


@pytest.fixture(scope="module")
def network(material: Material) -> Network:
    return build_network(parse_architecture("resnet18", classes=material.classes), seed=0).eval()


def places_of(part: NDArray[np.uint8], picture: Pillow.Image) -> list[tuple[int, int]]:
    """Where in a picture, from the left and from the top, an image stands pixel by pixel."""
    canvas = np.asarray(picture)
    height, width = part.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(canvas, part.shape)[:, :, 0]
    corners = np.argwhere((canvas[: -height + 1, : -width + 1] == part[0, 0]).all(axis=2))
    return [(int(left), int(top)) for top, left in corners if (windows[top, left] == part).all()]


def test_the_first_batch_shows_what_the_network_is_fed_with_each_row_an_identity(material: Material):
    rows = draw_batches(material.labels, batch_identities=4, batch_images=2, seed=0, epoch=1)[0]
    pixels = material.batch(rows, SMALL, epoch=1, step=0)
    picture = draw_first_batch(material, SMALL)
    places = [places_of(np.asarray(fit(image)), picture) for image in pixels]
    assert [len(place) for place in places] == [1] * 8
    for (one,), (other,) in zip(places[::2], places[1::2], strict=True):
        assert one[1] == other[1]
        assert 0 < other[0] - one[0] < 2 * fit(pixels[0]).width
    assert len({place[0] for place in places[::2]}) == 4


def test_of_a_large_batch_a_part_is_shown():
    pixels = np.zeros((40 * 20, 32, 32, 3), np.uint8)
    crops = [Crop(Path("x.png"), pid=str(row // 20)) for row in range(len(pixels))]
    picture = np.asarray(draw_identities(pixels, crops, 20))
    assert (picture == 0).all(axis=2).sum() == pytest.approx(32 * 16 * 84 * 84, rel=0.01)


def test_words_that_are_too_long_do_not_run_into_the_next_picture():
    pixels = np.zeros((2, 64, 32, 3), np.uint8)
    named = [draw_identities(pixels, [Crop(Path("x.png"), camid=camid)] * 2, 2) for camid in ("1", "1" * 80)]
    assert named[0].size == named[1].size
    columns = [np.flatnonzero((np.asarray(one)[-30:] < 128).all(axis=2).any(axis=0)) for one in named]
    gap = 14 + 72 + 3
    assert all(gap not in column for column in columns)


def test_predictions_are_the_softmax_of_the_scores(network: Network, material: Material):
    pixels = material.train.pixels[:5]
    classes, probabilities = predict(network, pixels, FEED)
    with torch.inference_mode():
        seen = normalise(torch.from_numpy(np.array(pixels)), mean=FEED.mean, std=FEED.std)
        scores = network(seen.contiguous()) @ network.get_parameter("classifier.weight").T
    expected = np.exp(scores.numpy() - scores.numpy().max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert classes.tolist() == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(probabilities, expected.max(axis=1), rtol=1e-5)


def test_parts_answer_with_the_mean_of_their_scores():
    scores = torch.tensor([[[0.0, 3.0, 0.0], [4.0, 2.0, 0.0]]])
    parted = SimpleNamespace(features=lambda x: (x, scores), classifier=torch.nn.Identity())
    classes, probabilities = predict(parted, np.zeros((1, 4, 4, 3), np.uint8), FEED)
    assert classes.tolist() == [1]
    assert probabilities[0] == pytest.approx(np.exp(2.5) / (np.exp(2) + np.exp(2.5) + 1))


def frames(picture: Pillow.Image, colour: tuple[int, int, int]) -> int:
    """How many pictures are framed in a colour."""
    areas, count = ndimage.label((np.asarray(picture) == colour).all(axis=2))
    # Single pixels of a photograph may have the colour too.
    return int((np.bincount(areas.ravel(), minlength=count + 1)[1:] > 1000).sum())


def test_predictions_are_framed_right_or_wrong(network: Network, material: Material):
    classes, _ = predict(network, material.train.pixels, FEED)
    right = int((classes == material.labels).sum())
    drawn = draw_predictions(network, material, FEED)
    shown = len(material.train)
    assert shown == 24
    assert (frames(drawn, RIGHT), frames(drawn, WRONG)) == (right, shown - right)


def test_images_that_were_held_out_are_shown_before_those_that_were_learnt_from(network: Network, material: Material):
    assert material.trial is not None
    held_out = replace(material.trial.query, pixels=material.train.pixels[:3], crops=material.train.crops[:3])
    classes, _ = predict(network, held_out.pixels, FEED)
    drawn = draw_predictions(network, replace(material, held_out=held_out, held_out_labels=classes), FEED)
    assert (frames(drawn, RIGHT), frames(drawn, WRONG)) == (3, 0)


def test_the_gallery_is_ranked_for_a_few_queries(network: Network, material: Material, tmp_path: Path):
    assert material.trial is not None
    draw_trial(network, material.trial, FEED, tmp_path / "rankings.png")
    with Pillow.open(tmp_path / "rankings.png") as picture:
        # Each of 6 queries has one right image; junk and those of its own camera are not shown.
        assert (frames(picture, RIGHT), frames(picture, WRONG)) == (6, 6 * 8)


RECORDS = [
    Record(epoch=0, rank1=0.1, mAP=0.05),
    Record(epoch=1, loss=4.0, accuracy=0.2, lr=1e-3, step_losses=(5.0, 3.0)),
    Record(epoch=2, stage=2, loss=2.0, accuracy=0.6, lr=1e-4, rank1=0.5, mAP=0.3, step_losses=(2.5, 1.5)),
]


def drawn(panel: Panel) -> tuple[dict[str, tuple[list[float], list[float]]], str]:
    """The curves of a panel by their names, as their x and y, and what it is as SVG."""
    with svg_axes(panel.title) as drawing:
        panel.draw(drawing.axes, PAGE)
        lines = {str(line.get_label()): line for line in drawing.axes.lines}
        curves = {name: (np.array(line.get_xdata()), np.array(line.get_ydata())) for name, line in lines.items()}
    return {name: (x.tolist(), y.tolist()) for name, (x, y) in curves.items()}, drawing.svg


def test_the_curves_of_a_run_are_its_records():
    panels = {panel.title: drawn(panel) for panel in run_panels(RECORDS)}
    assert list(panels) == ["Loss of each batch", "Loss of each epoch", "Accuracy", "Learning rate", "Rank-1 and mAP"]
    assert panels["Loss of each epoch"][0]["training, all terms"] == ([1, 2], [4, 2])
    assert panels["Accuracy"][0]["training"] == ([1, 2], [20, 60])
    assert panels["Rank-1 and mAP"][0]["Rank-1"] == ([0, 2], [10, 50])
    assert panels["Rank-1 and mAP"][0]["mAP"] == ([0, 2], [5, 30])
    assert panels["Loss of each batch"][0]["mean of 10 batches"] == ([1, 2, 3, 4], [5, 4, 3.5, 3])


def test_a_line_stands_where_a_stage_begins():
    panels = {panel.title: drawn(panel) for panel in run_panels(RECORDS)}
    for title, place in (("Loss of each batch", 2), ("Accuracy", 1.5), ("Rank-1 and mAP", 1.5)):
        curves, svg = panels[title]
        assert [place, place] in [x for x, _ in curves.values()]
        assert "stage 2" in svg


def test_a_learning_rate_that_never_changes_is_drawn_too():
    (panel,) = run_panels([Record(epoch=epoch, lr=3.5e-4) for epoch in (1, 2)])
    assert drawn(panel)[0]["learning rate"] == ([1, 2], [3.5e-4, 3.5e-4])


def test_what_was_not_measured_is_not_drawn():
    assert run_panels([Record(epoch=0)]) == []
    assert [panel.title for panel in run_panels([Record(epoch=1, loss=1.0, val_loss=2.0)])] == ["Loss of each epoch"]


def test_many_batches_are_drawn_by_their_extremes():
    losses = np.random.default_rng(0).random(20_000)
    (panel,) = run_panels([Record(epoch=1, step_losses=tuple(losses.tolist()))])
    curves, svg = drawn(panel)
    (raw,) = (curve for name, curve in curves.items() if "mean" not in name)
    assert len(raw[1]) == 1000
    assert (min(raw[1]), max(raw[1])) == (losses.min(), losses.max())
    x, y = curves["mean of 400 batches"]
    plain = [losses[max(0, int(end) - 400) : int(end)].mean() for end in x]
    np.testing.assert_allclose(y, plain, rtol=1e-9)
    assert len(svg) < 100_000


def test_runs_are_compared_measure_by_measure():
    runs = {"control": RECORDS, "no neck": [Record(epoch=1, loss=3.0), Record(epoch=2, loss=2.5, rank1=0.4)]}
    panels = {panel.title: drawn(panel) for panel in comparison_panels(runs)}
    assert list(panels) == [
        "Which curve is whose",
        *("Rank-1", "mAP", "Accuracy in training", "Loss in training, all terms"),
    ]
    assert sorted(panels["Rank-1"][0].values()) == [([0, 2], [10, 50]), ([2], [40])]
    assert list(panels["Which curve is whose"][0]) == ["control", "no neck"]
    assert "no neck" in panels["Which curve is whose"][1]


@pytest.mark.parametrize("count", [1, 2, 13])
def test_curves_are_written_as_a_picture(count: int, tmp_path: Path):
    draw_curves({f"variant {number}": RECORDS for number in range(count)}, tmp_path / "curves.png")
    with Pillow.open(tmp_path / "curves.png") as picture:
        assert picture.size == (3 * 616, 2 * 440)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_picture_is_a_png():
    picture = Pillow.new("RGB", (3, 2), (1, 2, 3))
    assert np.array_equal(np.asarray(Pillow.open(io.BytesIO(to_png(picture)))), np.asarray(picture))
