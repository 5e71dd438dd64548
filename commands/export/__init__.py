"""reid-export: a model becomes an artifact."""

from reidserve.commands.console import make_app, run
from reidserve.commands.export.converting import convert
from reidserve.commands.export.feeding import make_feeding, parse_size
from reidserve.commands.export.inspecting import inspect

__all__ = ["app", "main", "make_feeding", "parse_size"]

app = make_app("reid-export")
app.default(convert)
app.command(inspect)


def main() -> None:
    """Run the command."""
    run(app)
