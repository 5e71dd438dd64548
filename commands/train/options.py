"""What a run is told of its settings, by recipe, by name and by short flags."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from reidserve.commands.export import parse_size
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.export.train import Settings

_Unsaid = Parameter(show_default=False)


@Parameter(name="*", group=Group.create_ordered("Settings"))
@dataclass(frozen=True, slots=True)
class Chosen:
    """The settings of a run; the defaults are the bag of tricks on ResNet-50-IBN-a.

    Attributes:
        recipe: What to begin with: a recipe's name (`reid-train recipes` lists them) or your own .toml file.
        set: Change any setting by its name, such as optim.lr=3e-4 or stages.2.epochs=60; once for each.
        arch: resnet18, resnet34, resnet50 or resnet101, alone or with _ibn_a or _ibn_b (network.arch).
        size: Input size, height first, such as 256x128 (input.height, input.width).
        epochs: Passes over the training set, of a run of one stage (stages.1.epochs).
        pretrained: A checkpoint to start from, a file or URL#sha256=HEX: every tensor but the classifier
            (init.pretrained).
        precision: bf16 runs the network in mixed precision.
        device: Where the network runs; what is not there is refused.
        seed: Of weights, batches and augmentation.
    """

    recipe: Annotated[str | None, _Unsaid] = None
    set: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    arch: Annotated[str | None, _Unsaid] = None
    size: Annotated[str | None, _Unsaid] = None
    epochs: Annotated[int | None, _Unsaid] = None
    pretrained: Annotated[str | None, _Unsaid] = None
    precision: Annotated[Literal["fp32", "bf16"] | None, _Unsaid] = None
    device: Annotated[Literal["cpu", "cuda"] | None, _Unsaid] = None
    seed: Annotated[int | None, _Unsaid] = None

    def settings(self) -> "Settings":
        """The settings that all of it comes to.

        Raises:
            UsageError: a recipe, name or value that is none, or a setting given twice.
            ExportError: there is no such network.
        """
        from reidserve.export.train import Settings
        from reidserve.export.train.recipes import change, read_recipe, recipe_path

        begun = Settings() if self.recipe is None else read_recipe(recipe_path(self.recipe))
        settings = change(begun, [*self._short(), *self.set])
        if self.epochs is not None and len(settings.stages) > 1:
            each = " ".join(f"--set stages.{number}.epochs=" for number in range(1, len(settings.stages) + 1))
            raise UsageError(f"--epochs is of runs of one stage, this one has {len(settings.stages)}: give {each}")
        return settings

    def _short(self) -> list[str]:
        """The short flags as changes."""
        height, width = (None, None) if self.size is None else parse_size(self.size)
        given = {
            "network.arch": self.arch,
            "input.height": height,
            "input.width": width,
            "stages.1.epochs": self.epochs,
            "init.pretrained": self.pretrained,
            "precision": self.precision,
            "device": self.device,
            "seed": self.seed,
        }
        return [f"{name}={value}" for name, value in given.items() if value is not None]
