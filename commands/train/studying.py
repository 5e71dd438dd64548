"""reid-train study: a question, a control and its variants, beside what others published of it."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from reidserve.commands.console import Json, print_json, print_lines, progress
from reidserve.errors import UsageError


def study(
    name: str,
    /,
    *,
    data: Annotated[Path | None, Parameter(show_default=False)] = None,
    other: Annotated[Path | None, Parameter(show_default=False)] = None,
    scale: Literal["quick", "full"] = "quick",
    repeat: int = 2,
    pretrained: Annotated[tuple[Path, ...], Parameter(negative="", show_default=False)] = (),
    variant: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    out: Path = Path("studies"),
    json: Json = False,
) -> None:
    """Train a control and variants that differ from it in one thing, and print their table.

    init: what weights begin as. unfreeze, freeze: layers that learn, stage by stage. backbone: IBN-a and neck, in and
    across domains. tricks: training tricks, each alone. swap, transfer: foregrounds on other backgrounds. adapt:
    adapting to an unlabelled domain. all: one after the other.

    OUT/NAME/ gets results.csv (a row for each variant, repeat, epoch and test), table.md and study.html, all with the
    authors' figures beside ours. What was cut off goes on when it is started again, what is finished is not run again.

    Args:
        name: Which study, or all.
        data: The dataset to train on; at quick scale persons are drawn if it is left out.
        other: Another dataset, for what is tested across domains, put on other backgrounds, or adapted to.
        scale: quick: a small network and few epochs, some 10 minutes a study and repeat on two processor cores. full:
            the authors' network, input size and epochs.
        repeat: Runs of each variant, with seeds one apart.
        pretrained: A checkpoint to start from, one for each backbone that is compared; at quick scale weights are
            pretrained on synthetic vehicles if it is left out.
        variant: Only these, and the control; else all.
        set_: A setting of every variant that does not change it itself, such as device=cuda or adapt.eps=0.4.
        out: The folder of all studies.
    """
    from reidserve.export.files import write_whole
    from reidserve.export.study import (
        STUDIES,
        Listener,
        find_sources,
        find_study,
        read_rows,
        run_study,
        write_page,
        write_table,
    )

    if repeat < 1:
        raise UsageError(f"--repeat must be 1 or more, got {repeat}")
    studies = list(STUDIES.values()) if name == "all" else [find_study(name)]
    with progress("drawing") as advance:
        sources = find_sources(
            studies, out, scale=scale, data=data, other=other, pretrained=pretrained, progress=advance
        )
    results = {}
    for one in studies:
        folder = out / one.name
        with progress(one.name) as advance:
            run_study(
                *(one, sources, folder),
                repeats=repeat,
                variants=variant,
                changes=set_,
                listener=Listener(say=_say, progress=advance),
            )
        # From the file: what stands beside it is what can be made of it again.
        results[one.name] = rows = read_rows(folder / "results.csv")
        table = write_table(one, rows)
        write_whole(folder / "table.md", table.encode())
        write_page(folder / "study.html", one, rows)
        if not json:
            print_lines([table, f"wrote {folder / 'results.csv'}, table.md and study.html"])
    if json:
        print_json({"studies": results})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
