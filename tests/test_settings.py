import re
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from reidserve.errors import ExportError, UsageError  # noqa: E402
from reidserve.export.train.recipes import change  # noqa: E402
from reidserve.export.train.settings import Settings, Stage  # noqa: E402

COSINES = ["head.unit_features=true", "head.unit_rows=true"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["stages.1.epochs=0"], "stages.N.epochs must be 1 to 100000, got 0"),
        (["batch.identities=1"], "batch.identities must be 2 to 4096, got 1"),
        (["optim.lr=0"], "optim.lr must be 1e-09 to 10, got 0"),
        (["optim.lr=nan"], "optim.lr must be 1e-09 to 10, got nan"),
        (["seed=-1"], "seed must be 0 to 4294967295, got -1"),
        (["input.height=8"], "input.height must be 32 to 2048, got 8"),
        (["input.std=[0.2, 0.0, 0.2]"], "input.std must be finite and above 0, got (0.2, 0.0, 0.2)"),
        (["input.std=[0.2, nan, 0.2]"], "input.std must be finite and above 0, got (0.2, nan, 0.2)"),
        (["input.mean=[inf, 0.4, 0.4]"], "input.mean must be finite, got (inf, 0.4, 0.4)"),
        (["schedule.milestones=[0.8, 0.5]"], "schedule.milestones must be shares from 0 to 1 that grow"),
        (["stages.1.learns=[layer5]"], "stages.N.learns must be all, or some of stem, layer1,"),
        (["stages.1.learns=[]"], "stages.N.learns must be all, or some of stem, layer1,"),
        (["stages.1.start=1"], "stage 1 can begin with a stage before it, got 1"),
        (["stages.2.start=2"], "stage 2 can begin with a stage before it, got 2"),
        (["batch.images=1"], "loss.metric = triplet compares images of one identity: batch.images must be 2 or more"),
        (["loss.classification=cosface", *COSINES], "loss.classification_margin must be 0 to 1, got 28.6"),
        (["loss.metric=circle", "loss.margin=2"], "loss.margin must be 0 to 1, got 2"),
        (
            ["loss.classification=arcface"],
            "takes cosines: head.unit_features must be true, head.unit_rows",
        ),
        (["loss.classification=arcface", *COSINES, "head.temperature=0.1"], "head.temperature must be 1.0"),
        (["loss.classification=arcface", *COSINES, "network.neck=no"], "network.neck must be bnneck"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        change(Settings(), changes)


def test_what_a_value_allows_is_allowed():
    settings = change(Settings(), ["batch.images=1", "loss.metric=none", "stages.2.start=1", "stages.2.lr=0.1"])
    assert settings.batch.size == 16
    assert settings.stages == (Stage(), Stage(start=1, lr=0.1))
    assert settings.epochs == 240
    assert change(settings, ["loss.classification=arcface", *COSINES]).head.unit_rows


def test_choices_are_checked_of_values_that_were_not_read():
    settings = Settings()
    with pytest.raises(UsageError, match=re.escape("input.resize must be nearest, bilinear, bicubic, lanczos")):
        replace(settings.input, resize="box")
    with pytest.raises(UsageError, match="precision must be fp32, bf16, got 'fp16'"):
        replace(settings, precision="fp16")
    with pytest.raises(UsageError, match="network.pooling must be average, gem, got 'max'"):
        replace(settings.network, pooling="max")
    with pytest.raises(UsageError, match="a name in Unicode"):
        replace(settings.init, pretrained="\udcff.pth")


def test_an_architecture_that_is_not_there_is_refused():
    with pytest.raises(ExportError, match="resnet18"):
        change(Settings(), ["network.arch=resnet19"])


def test_values_have_dotted_names_with_stages_counted_from_1():
    values = Settings(stages=(Stage(epochs=3), Stage(epochs=4, learns=("head",)))).values()
    assert (values["optim.lr"], values["stages.1.epochs"], values["stages.2.epochs"]) == (3.5e-4, 3, 4)
    assert values["stages.2.learns"] == ("head",)
    assert list(values)[:3] == ["network.arch", "network.last_stride", "network.neck"]


def test_differences_are_said_in_words():
    before = Settings()
    after = change(before, ["optim.lr=1e-3", "init.pretrained=a.pth", "stages.2.epochs=5", "evaluation.every=0"])
    assert after.differences(before) == [
        "optim.lr was 0.00035, is 0.001",
        "init.pretrained was nothing, is a.pth",
        "evaluation.every was 10, is 0",
        "stages.2.epochs was nothing, is 5",
        "stages.2.learns was nothing, is ('all',)",
        "stages.2.lr was nothing, is 1.0",
        "stages.2.start was nothing, is previous",
    ]
    assert after.differences(after) == []
