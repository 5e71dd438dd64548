import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reidserve.errors import UsageError  # noqa: E402
from reidserve.export.train.recipes import change, read_recipe, recipe_names, recipe_path, write_recipe  # noqa: E402
from reidserve.export.train.settings import (  # noqa: E402
    LEARNING,
    InitSettings,
    InputSettings,
    OptimSettings,
    Settings,
    Stage,
)


def read_text(text: str, folder: Path) -> Settings:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


# Our own recipes


def test_there_are_five_recipes():
    assert recipe_names() == ["bot-ibn", "pcb", "sbs", "strong-baseline", "vehicle"]


@pytest.mark.parametrize("name", ["bot-ibn", "pcb", "sbs", "strong-baseline", "vehicle"])
def test_a_recipe_says_whose_it_is_and_only_what_differs_from_the_defaults(name: str):
    text = recipe_path(name).read_text()
    assert all(line.startswith("# ") for line in text.splitlines()[:2])
    assert "github.com/" in text
    settings = read_recipe(recipe_path(name))
    stated = len(re.findall(r"^\w+ = ", text, re.M))
    assert (
        len([line for line in settings.differences(Settings()) if not line.startswith("stages.2.")])
        + (len(settings.stages) - 1)
        == stated
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "strong-baseline",
            {
                "network.arch": "resnet50",
                "network.last_stride": 1,
                "network.neck": "bnneck",
                "input.height": 256,
                "batch.identities": 16,
                "batch.images": 4,
                "optim.name": "adam",
                "optim.lr": 3.5e-4,
                "optim.weight_decay": 5e-4,
                "loss.smoothing": 0.1,
                "loss.metric": "triplet",
                "loss.margin": 0.3,
                "loss.centre_weight": 2 * 0.0005,
                "augment.erase": 0.5,
                "augment.pad": 10 / 256,
                "stages.1.epochs": 120,
            },
        ),
        ("bot-ibn", {"network.arch": "resnet50_ibn_a", "input.resize": "bicubic", "loss.centre_weight": 0.0}),
        (
            "sbs",
            {
                "network.pooling": "gem",
                "input.height": 384,
                "input.width": 128,
                "batch.identities": 4,
                "batch.images": 16,
                "schedule.name": "cosine",
                "loss.classification": "circle",
                "loss.classification_scale": 64.0,
                "loss.metric": "soft-triplet",
                "stages.1.learns": ("head",),
                "stages.2.learns": ("all",),
            },
        ),
        (
            "pcb",
            {
                "network.parts": 6,
                "input.height": 384,
                "optim.name": "sgd",
                "optim.weight_decay": 5e-4,
                "loss.smoothing": 0.0,
                "loss.metric": "none",
                "augment.erase": 0.0,
                "stages.1.epochs": 60,
            },
        ),
        ("vehicle", {"network.arch": "resnet50_ibn_a", "input.height": 256, "input.width": 256}),
    ],
)
def test_a_recipe_has_its_projects_values(name: str, expected: dict):
    values = read_recipe(recipe_path(name)).values()
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "epochs", "warm_up", "milestones"),
    [("strong-baseline", 120, 10, (40, 70)), ("bot-ibn", 120, 10, (40, 90)), ("vehicle", 60, 10, (30, 50))],
)
def test_the_learning_rate_changes_at_the_epochs_of_the_projects(name: str, epochs, warm_up, milestones):
    settings = read_recipe(recipe_path(name))
    assert settings.epochs == epochs
    # To a thousandth of an epoch.
    assert settings.schedule.warm_up * epochs == pytest.approx(warm_up, abs=1e-3)
    assert [share * epochs for share in settings.schedule.milestones] == pytest.approx(list(milestones), abs=1e-3)


def test_pcbs_backbone_learns_at_a_tenth_of_the_rate_of_its_classifiers():
    optim = read_recipe(recipe_path("pcb")).optim
    assert (optim.lr, optim.lr * optim.head_lr) == (0.01, 0.1)


# Files


def test_a_recipe_is_one_of_ours_or_a_file():
    assert recipe_path("pcb").name == "pcb.toml"
    assert recipe_path("folder/mine.toml") == Path("folder/mine.toml")
    with pytest.raises(UsageError, match=r"bot-ibn, pcb, sbs, .*, got strong-baselin; did you mean strong-baseline\?"):
        recipe_path("strong-baselin")


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
shares = st.floats(0, 1)


@given(
    settings=st.builds(
        Settings,
        input=st.builds(InputSettings, mean=st.tuples(shares, shares, shares)),
        optim=st.builds(OptimSettings, lr=st.floats(1e-9, 10), name=st.sampled_from(["adamw", "adam", "sgd"])),
        init=st.builds(InitSettings, pretrained=words, class_centres=st.booleans()),
        stages=st.lists(
            st.builds(
                Stage,
                epochs=st.integers(1, 100),
                learns=st.lists(st.sampled_from(LEARNING), min_size=1).map(tuple),
                lr=st.floats(1e-9, 1e6),
                start=st.sampled_from(["previous", "best"]),
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
    )
)
def test_settings_written_read_back_equal_to_the_last_bit(settings: Settings, tmp_path_factory):
    assert read_text(write_recipe(settings), tmp_path_factory.getbasetemp()) == settings


def test_a_file_may_begin_with_a_byte_order_mark_and_end_its_lines_as_on_windows(tmp_path: Path):
    (tmp_path / "own.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n[optim]\r\nlr = 1.0\r\n")
    assert read_recipe(tmp_path / "own.toml") == Settings(seed=3, optim=OptimSettings(lr=1.0))


def test_what_a_file_does_not_name_is_as_by_default(tmp_path: Path):
    settings = read_text("seed = 3\n[optim]\nlr = 1\n[[stages]]\n[[stages]]\nepochs = 7\nstart = 1\n", tmp_path)
    assert settings == Settings(seed=3, optim=OptimSettings(lr=1.0), stages=(Stage(), Stage(epochs=7, start=1)))
    assert isinstance(settings.optim.lr, float)
    assert read_text("", tmp_path) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlt = 1\n", "own.toml: there is no setting optim.lt; did you mean optim.lr?"),
        ('"optim.lr" = 1\n', 'own.toml: there is no setting "optim.lr"; did you mean optim.lr?'),
        ("[optm]\nlr = 1\n", "own.toml: there is no setting optm; did you mean optim?"),
        ("[[stages]]\nepoch = 1\n", "own.toml: there is no setting stages.1.epoch; did you mean stages.1.epochs?"),
        ("[[stages]]\n[[stages]]\nepoch = 1\n", "there is no setting stages.2.epoch; did you mean stages.2.epochs?"),
        ("[optim]\nlr = 'fast'\n", "own.toml: optim.lr must be a number such as 0.5, got 'fast'"),
        ("[optim]\nname = 'adamx'\n", "own.toml: optim.name must be adamw, adam, sgd, got 'adamx'"),
        ("[optim]\nlr = 100\n", "own.toml: optim.lr must be 1e-09 to 10, got 100"),
        ("[network]\narch = 'resnet19'\n", "own.toml: an architecture is resnet18,"),
        ("optim = 3\n", "own.toml: optim must be a section, [optim], got 3"),
        ("[stages]\nepochs = 3\n", "own.toml: stages must be sections, [[stages]], got {'epochs': 3}"),
        ("stages = []\n", "own.toml: stages must be sections, [[stages]], got []"),
        ("[optim\n", "own.toml cannot be read: Expected ']'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_file_and_name(text: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=re.escape(message)):
        read_text(text, tmp_path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"the recipe .*none.toml cannot be read: .*No such file"):
        read_recipe(tmp_path / "none.toml")


# Single settings


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr = 1", "optim.lr", 1.0),
        ("optim.name=sgd", "optim.name", "sgd"),
        ('optim.name="sgd"', "optim.name", "sgd"),
        ("init.class_centres=true", "init.class_centres", True),
        ("init.pretrained=models/a.pth", "init.pretrained", "models/a.pth"),
        ("init.pretrained=123", "init.pretrained", "123"),
        ("init.pretrained=http://a/b.pth#sha256=0f", "init.pretrained", "http://a/b.pth#sha256=0f"),
        ("stages.1.learns=[layer4, head]", "stages.1.learns", ("layer4", "head")),
        ('stages.1.learns=["head"]', "stages.1.learns", ("head",)),
        ("schedule.milestones=[0.25, 0.5, 1]", "schedule.milestones", (0.25, 0.5, 1.0)),
        ("schedule.milestones=[]", "schedule.milestones", ()),
        ("stages.1.epochs=60", "stages.1.epochs", 60),
        ("seed=7", "seed", 7),
    ],
)
def test_one_value_is_changed_and_no_other(text: str, name: str, value: object):
    values = change(Settings(), [text]).values()
    assert values == {**Settings().values(), name: value}


def test_stages_are_added_one_after_the_other_whatever_the_order():
    changes = ["stages.3.start=1", "stages.2.epochs=60", "stages.2.learns=[layer4, head]", "stages.1.epochs=5"]
    expected = (Stage(epochs=5), Stage(epochs=60, learns=("layer4", "head")), Stage(start=1))
    assert change(Settings(), changes).stages == expected
    assert change(Settings(), changes[::-1]).stages == expected
    # A stage that is there keeps what is not named.
    assert change(Settings(stages=expected), ["stages.2.lr=0.1"]).stages[1] == Stage(
        epochs=60, learns=("layer4", "head"), lr=0.1
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["optim.lr"], "expected NAME=VALUE, such as optim.lr=3e-4, got optim.lr"),
        (["lr=1"], "there is no setting lr; did you mean optim.lr?"),
        (["optm.lr=1"], "there is no setting optm.lr; did you mean optim.lr?"),
        (["optim=1"], "optim holds several settings, set one: optim.name, optim.lr"),
        (["stages.2.epoch=1"], "there is no setting stages.2.epoch; did you mean stages.2.epochs?"),
        (["optim.LR=1"], "there is no setting optim.LR; did you mean optim.lr?"),
        (["batch=8"], "batch holds several settings, set one: batch.identities, batch.images, batch.accumulate"),
        (["stages.2=8"], "stages.2 holds several settings, set one: stages.2.epochs, stages.2.learns, stages.2.lr"),
        (["stages=1"], "stages holds several settings, set one: stages.1.epochs"),
        (["stages.0.epochs=1"], "there is no setting stages.0.epochs; did you mean stages.1.epochs?"),
        (["colour.blue=1"], "there is no setting colour.blue; the sections are augment, batch,"),
        (["stages.3.epochs=1"], "stages.3 is set, but there is no stage 2"),
        (["optim.lr=1", "optim.lr=2"], "optim.lr is set twice, to 1 and 2"),
        (["optim.lr=fast"], "optim.lr must be a number such as 0.5, got 'fast'"),
        (["optim.lr=true"], "optim.lr must be a number such as 0.5, got True"),
        (["seed=1.5"], "seed must be a whole number, got 1.5"),
        (["init.class_centres=yes"], "init.class_centres must be true or false, got 'yes'"),
        (["network.last_stride=3"], "network.last_stride must be 1, 2, got 3"),
        (["input.mean=[0.5, 0.5]"], "input.mean must be a list such as [0.5, 0.5, 0.5], got [0.5, 0.5]"),
        (["stages.1.learns=head"], "stages.1.learns must be a list such as [\"head\"], got 'head'"),
        (["stages.1.start=first"], "stages.1.start must be previous, best or a whole number, got 'first'"),
    ],
)
def test_a_change_that_is_none_is_refused_with_the_nearest_name_or_what_was_expected(changes, message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        change(Settings(), changes)


# The documentation


def described(section: object) -> dict[str, str]:
    """What a section's docstring says of each of its values."""
    assert section.__doc__ is not None
    lines = section.__doc__.partition("Attributes:")[2].partition("Raises:")[0]
    return {name: " ".join(text.split()) for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", lines, re.M)}


def documented_settings() -> list[str]:
    """A row of the table for every setting: its name, its default in TOML, and what its docstring says."""
    rows, section = [], ""
    about = described(Settings())
    for line in write_recipe(Settings()).splitlines():
        name, equals, default = line.partition(" = ")
        if line.startswith("["):
            section = line.strip("[]")
            about = described(Settings().stages[0] if section == "stages" else getattr(Settings(), section))
        elif equals:
            dotted = f"{section}.{name}" if section else name
            rows.append(f"| `{dotted.replace('stages.', 'stages.N.')}` | `{default}` | {about[name]} |")
    return rows


def test_the_documentation_has_every_setting_with_its_default_and_its_meaning():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = documented_settings()
    assert len(rows) == len(Settings().values())
    assert [row for row in text.splitlines() if re.match(r"\| `[a-z_.N]+` \| `.+` \|", row)] == rows


def test_the_documentation_says_of_every_recipe_whose_it_is():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition("\n## Recipes\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.M) == recipe_names()
