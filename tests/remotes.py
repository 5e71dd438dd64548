"""Servers of the Open Inference Protocol v2 that tests start, end and start again."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reidserve.embed import ModelUrl


@dataclass
class Remote:
    """A stand-in server in a process of its own.

    Attributes:
        process: the server.
        url: of its model.
        fault: the file that says what is wrong with its answers from now on.
    """

    process: subprocess.Popen[str]
    url: ModelUrl
    fault: Path


def start_remote(folder: Path, *options: object, fault: Path, port: int = 0, contract: Path | None = None) -> Remote:
    """A server of a model's folder in a repository, once it listens."""
    program = Path(__file__).parent / "v2_server.py"
    process = subprocess.Popen(
        [sys.executable, "-P", program, folder, "--port", str(port), "--fault", fault, *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(f"the v2 server ended with {process.wait(10)}")
    return Remote(process, ModelUrl(f"127.0.0.1:{int(line)}", "reid", contract), fault)


def kill_remote(remote: Remote) -> None:
    """SIGKILL."""
    remote.process.kill()
    remote.process.wait(10)
    assert remote.process.stdout is not None
    remote.process.stdout.close()


@contextmanager
def running(folder: Path, *options: object, fault: Path, contract: Path | None = None) -> Iterator[Remote]:
    """A server while the block lasts."""
    remote = start_remote(folder, *options, fault=fault, contract=contract)
    try:
        yield remote
    finally:
        kill_remote(remote)
