"""reid-train: a dataset becomes a checkpoint."""

from reidserve.commands.console import make_app, run
from reidserve.commands.train.adapting import adapt
from reidserve.commands.train.recipes import recipes
from reidserve.commands.train.studying import study
from reidserve.commands.train.training import train

app = make_app("reid-train")
app.default(train)
app.command(adapt)
app.command(recipes)
app.command(study)


def main() -> None:
    """Run the command."""
    run(app)
