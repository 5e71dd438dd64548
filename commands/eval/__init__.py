"""reid-eval: Rank@k and mAP of exactly what is deployed, and whether a difference is noise."""

from reidserve.commands.console import make_app, run
from reidserve.commands.eval.comparing import compare
from reidserve.commands.eval.scoring import score

app = make_app("reid-eval")
app.default(score)
app.command(compare)


def main() -> None:
    """Run the command."""
    run(app)
