import io
from collections.abc import Iterator

import pytest
from rich.console import Console

pytest.importorskip("torch")

from reidserve.commands.train.live import Meter, Reading, line_of, numbers_of, place_of, watch
from reidserve.export.train import Record, Settings
from reidserve.export.train.settings import BatchSettings, Stage

SETTINGS = Settings(batch=BatchSettings(identities=4, images=2), stages=(Stage(epochs=1), Stage(epochs=3)))


def read_all(meter: Meter, batches: range, total: int) -> list[Reading]:
    readings = []
    for done in batches:
        meter.step(loss=10.0 - done, accuracy=done / 100)
        readings.append(meter.read(done, total))
    return readings


def clock(*times: float) -> Iterator[float]:
    return iter(times)


def test_a_reading_says_where_a_run_stands_and_how_it_goes():
    times = clock(0, 1, 3, 5, 9, 10)
    readings = read_all(Meter(SETTINGS, clock=lambda: next(times)), range(1, 6), total=12)
    assert [(one.epoch, one.stage, one.batch) for one in readings] == [
        *((1, 1, 1), (1, 1, 2), (1, 1, 3)),
        *((2, 2, 1), (2, 2, 2)),
    ]
    assert [one.loss for one in readings] == [9, 8.5, 8, 7.5, 7]
    assert [one.accuracy for one in readings] == pytest.approx([0.01, 0.015, 0.02, 0.025, 0.03])
    # 8 images a batch; what lies between two epochs, such as an evaluation, does not slow the images down ...
    assert [one.images_per_second for one in readings] == [None, 4, 4, None, 8]
    # ... but it takes time.
    assert [one.seconds_left for one in readings] == pytest.approx([11, 15, 15, 9 / 4 * 8, 14])


def test_a_run_that_goes_on_is_not_thought_faster_for_what_was_done_before():
    times = clock(100, 102, 104)
    readings = read_all(Meter(SETTINGS, clock=lambda: next(times)), range(9, 11), total=12)
    assert [one.seconds_left for one in readings] == [6, 4]


def test_loss_and_accuracy_are_of_the_last_twenty_batches():
    readings = read_all(Meter(Settings()), range(1, 41), total=120 * 50)
    assert readings[-1].loss == pytest.approx(10 - 30.5)
    assert readings[-1].accuracy == pytest.approx(0.305)


READING = Reading(
    epoch=3,
    stage=2,
    batch=17,
    batches=40,
    loss=3.2144,
    accuracy=0.412,
    images_per_second=118.2,
    seconds_left=3723.4,
)


def test_a_reading_is_put_in_few_words():
    assert place_of(READING, SETTINGS) == "epoch 3/4, stage 2/2, batch 17/40"
    assert place_of(READING, Settings()) == "epoch 3/120, batch 17/40"
    assert numbers_of(READING) == "loss 3.214  accuracy 41 %  118 images/s  1:02:03 left"


def run_watched(console: Console) -> None:
    with watch(SETTINGS, console=console) as watched:
        for done in range(1, 13):
            watched.on_step(2.5, 0.5)
            watched.progress(done, 12)


def test_a_terminal_of_eighty_columns_shows_all_of_it():
    shown = io.StringIO()
    run_watched(Console(file=shown, force_terminal=True, width=80, color_system=None))
    lines = [line for line in shown.getvalue().replace("\r", "\n").splitlines() if "loss 2.500" in line]
    assert lines
    assert all("accuracy 50 %" in line and "images/s" in line and "left" in line for line in lines)
    assert "epoch 4/4, stage 2/2, batch 3/3 ━" in shown.getvalue()


def test_where_nobody_watches_nothing_is_shown():
    shown = io.StringIO()
    run_watched(Console(file=shown, width=80))
    assert shown.getvalue().strip() == ""


def test_an_epoch_is_a_line_of_what_was_measured():
    assert line_of(Record(epoch=0, rank1=0.25, mAP=0.125), Settings()) == (
        "epoch   0/120  before training  Rank-1 0.2500  mAP 0.1250"
    )
    learnt = Record(
        epoch=2, stage=2, loss=1.5, accuracy=0.5, val_loss=2.0, val_accuracy=0.25, images_per_second=99.6, lr=3.5e-4
    )
    assert line_of(learnt, SETTINGS) == (
        "epoch 2/4  stage 2  loss 1.500  accuracy 0.500  held-out loss 2.000  held-out accuracy 0.250  images/s 100  "
        "lr 3.50e-04"
    )
