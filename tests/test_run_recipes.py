import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from reidserve.export.checkpoints import read_checkpoint  # noqa: E402
from reidserve.export.train import Material  # noqa: E402
from reidserve.export.train.recipes import change, read_recipe, recipe_names, recipe_path  # noqa: E402
from tests.runs import log_of, read_small, train_into  # noqa: E402

TINY = ["network.arch=resnet18", "input.height=32", "input.width=32", "batch.identities=4", "evaluation.every=0"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return read_small(tmp_path_factory.mktemp("recipes"), *TINY[1:])


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_learns(name: str, material: Material, tmp_path: Path):
    recipe = read_recipe(recipe_path(name))
    epochs = [f"stages.{number}.epochs=1" for number in range(1, len(recipe.stages) + 1)]
    settings = change(recipe, [*TINY, "batch.images=2", *epochs])
    outcome = train_into(tmp_path / "run", material, settings)
    assert outcome.best.epoch == len(recipe.stages)
    losses = [line["loss"] for line in log_of(tmp_path / "run")[1:]]
    assert all(math.isfinite(loss) for loss in losses)
    network = read_checkpoint(outcome.model).network.eval()
    with torch.no_grad():
        features = network(torch.rand(2, 3, 32, 32))
    # PCB gives the pooled stripes, of 512 channels each.
    assert features.shape == (2, 6 * 512 if name == "pcb" else 512)
    assert read_recipe(tmp_path / "run" / "settings.toml") == settings
