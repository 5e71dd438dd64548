"""reid-index: build, change, keep and search galleries."""

from reidserve.commands.console import make_app, run
from reidserve.commands.index.care import compact, info, verify
from reidserve.commands.index.changing import remove, update
from reidserve.commands.index.embedding import add, build, rebuild
from reidserve.commands.index.exchange import copy, export, import_, restore, snapshot
from reidserve.commands.index.forgetting import forget
from reidserve.commands.index.search import search
from reidserve.commands.index.tuning import tune

app = make_app(
    "reid-index",
    "Build, change, keep and search galleries: folders of embeddings that a model was run for once, or "
    "milvus://HOST:PORT/NAME. One process at a time writes to a gallery; reading goes on beside it.",
)
for command in (
    *(build, add, remove, update, forget, rebuild, info, search, tune, verify, compact),
    *(export, snapshot, restore, copy),
):
    app.command(command)
app.command(import_, name="import")


def main() -> None:
    """Run the command."""
    run(app)
