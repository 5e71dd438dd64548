"""The writer: every picture of a spec on disk, or none."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np
import PIL

from reidserve.datasets.synth.photographs import take
from reidserve.datasets.synth.shots import FOLDERS, Shot, plan_shots
from reidserve.datasets.synth.spec import SynthSpec, SynthSummary
from reidserve.errors import DatasetError, OutputExistsError

FORMAT = 1
"""Goes up whenever the same spec gives other pictures."""
CHUNK = 64
"""Shots a process is handed at a time."""


_Started = TypeVar("_Started")

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def write_dataset(
    out: Path,
    spec: SynthSpec,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> SynthSummary:
    """Write a dataset in Market-1501 layout, masks/ and synth.json beside it; the bytes depend on the spec alone.

    More than one of `processes` are spawned, so a script that asks for them needs the `__main__` guard.

    Raises:
        OutputExistsError: there is something at `out`.
        DatasetError: `processes` is below 1.
    """
    if processes < 1:
        raise DatasetError(f"processes must be at least 1, got {processes}")
    shots = list(plan_shots(spec))
    summary = _summary(shots)
    with _whole_or_nothing(out) as folder:
        for name in FOLDERS:
            (folder / name).mkdir()
            (folder / "masks" / name).mkdir(parents=True)
        chunks = [shots[start : start + CHUNK] for start in range(0, len(shots), CHUNK)]
        done = 0
        for count in _written(partial(_write_shots, folder, spec), chunks, processes):
            done += count
            if progress:
                progress(done, len(shots))
        (folder / "synth.json").write_text(_card(spec, summary), encoding="utf-8")
    return summary


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """Lend a folder beside `out` that takes its name when the block is through, and goes when it fails."""
    _check_free(out)
    folder = out.parent / f".{out.name}.{uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
        _check_free(out)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _check_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise OutputExistsError(f"expected nothing at {out}, found something: remove it or choose another place")


def _written(write: Callable[[Sequence[Shot]], int], chunks: Sequence[Sequence[Shot]], processes: int) -> Iterator[int]:
    if processes == 1:
        yield from map(write, chunks)
        return
    # A fork would copy the threads' locks of whoever calls.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_leave_interrupts)
    try:
        # Interrupts reach the main thread: another one starts the processes, or they would get half of their orders.
        with ThreadPoolExecutor(1) as starter:
            written = starter.submit(_without_interrupts, pool.map, write, chunks).result()
        yield from written
    finally:
        pool.shutdown(cancel_futures=True)


def _without_interrupts(start: Callable[..., _Started], *arguments: object) -> _Started:
    # Processes inherit the mask of the thread that starts them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    return start(*arguments)


def _leave_interrupts() -> None:
    # Ctrl-C reaches the whole group of processes; the first one tidies up for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)


def _write_shots(folder: Path, spec: SynthSpec, shots: Sequence[Shot]) -> int:
    for shot in shots:
        picture, mask = take(spec, shot)
        name = shot.name(spec)
        (folder / shot.folder / f"{name}.jpg").write_bytes(picture)
        (folder / "masks" / shot.folder / f"{name}.png").write_bytes(mask)
    return len(shots)


def _summary(shots: Sequence[Shot]) -> SynthSummary:
    folders, roles = Counter(shot.folder for shot in shots), Counter(shot.role for shot in shots)
    return SynthSummary(
        train=folders["bounding_box_train"],
        query=folders["query"],
        gallery=folders["bounding_box_test"],
        junk=roles["junk"],
        distractors=roles["distractor"],
    )


def _card(spec: SynthSpec, summary: SynthSummary) -> str:
    versions = {"format": FORMAT, "numpy": np.__version__, "pillow": PIL.__version__}
    card = {"spec": asdict(spec), "versions": versions, "counts": asdict(summary)}
    return json.dumps(card, indent=2) + "\n"
