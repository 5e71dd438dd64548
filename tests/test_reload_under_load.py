"""Reloads and stops under load, briefly (benchmarks/reload.py is the long one), and writes meanwhile."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reidserve.client import Client, NewEntry
from tests.conftest import start_server, stop_server

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "reload.py"


def test_reloads_and_stops_under_load_fail_no_call_and_mix_no_models():
    run = subprocess.run(
        [sys.executable, "-P", BENCHMARK, "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    report = json.loads(run.stdout.splitlines()[-1])
    assert (run.returncode, report["holds"], report["wrong"]) == (0, True, []), run.stderr
    assert (report["model_reloads"], report["gallery_swaps"], report["stops"]) == (2, 2, 2)
    assert report["exit_codes"] == [0]
    assert report["answered_meanwhile"] > 0
    assert report["refused_in_words"] == 8


def test_writes_and_an_import_go_on_over_reloads(tmp_path: Path, model: Path, gallery: Path, crops: Path):
    shutil.copytree(model, tmp_path / "models" / "again")
    shutil.copytree(gallery, tmp_path / "own.gallery")
    images = [path.read_bytes() for path in sorted(crops.iterdir())]
    running = start_server(
        "--model", model, "--gallery", tmp_path / "own.gallery", "--models-root", tmp_path / "models"
    )
    done = threading.Event()

    def slowly() -> Iterator[NewEntry]:
        for number in range(150):
            yield NewEntry(f"imported {number}", images[number % len(images)])
            time.sleep(0.01)

    def write() -> None:
        with Client(running.target) as client:
            for number in range(40):
                client.upsert([NewEntry(f"written {number}", images[number])])

    def reload() -> int:
        with Client(running.target) as client:
            while not done.is_set():
                client.reload("again")
                time.sleep(0.5)
            return client.model().reloads

    try:
        with Client(running.target) as client, ThreadPoolExecutor(2) as pool:
            writing, reloading = pool.submit(write), pool.submit(reload)
            try:
                imported = client.import_entries(slowly())
                writing.result()
            finally:
                done.set()
            reloads = reloading.result()
            entries = client.gallery().entries
    finally:
        assert stop_server(running) == 0
    assert (imported.written, imported.faults) == (150, ())
    assert entries == len(images) + 150 + 40
    assert reloads > 1
