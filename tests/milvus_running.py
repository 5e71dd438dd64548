"""A real Milvus server of the `milvus` package, for tests: on loopback, killed with SIGKILL and started again."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STARTED_SECONDS = 180


class RunningMilvus:
    """A Milvus server that keeps its data and its ports when it is killed and started again.

    Attributes:
        address: host:port of its gRPC.
    """

    def __init__(self, folder: Path) -> None:
        package = pytest.importorskip("milvus", reason="needs the [test] extra")
        self._folder = folder.absolute()
        names = [name for name in package.MilvusServerConfig().configurable_items if name.endswith("_port")]
        self._health, peer, *free = free_ports(len(names) + 2)
        ports = dict(zip(names, free, strict=True))
        config = package.MilvusServerConfig(data_dir=str(self._folder), **ports)
        for part in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
            config.set(f"{part}.ip", "127.0.0.1")
        # What reads the newest waits for so many ms; the tests need not wait as long as is best for a busy server.
        config.set("proxy.timeTickInterval", 20)
        config.resolve()
        self._move_etcd(ports["etcd_port"], peer)
        package._initialize_data_files(str(self._folder))
        self._binary = self._folder / "bin" / "milvus"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{ports['proxy_port']}"

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        environment: dict[str, Any] = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._health),
            "MILVUS_RUN_DIR": str(self._folder / "run"),
            "LD_LIBRARY_PATH": str(self._binary.parent),
        }
        with (self._folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "run", "standalone"], cwd=self._folder, env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + STARTED_SECONDS
        while not self._healthy():
            assert self._process.poll() is None, f"Milvus ended with {self._process.returncode} before it was ready"
            assert time.monotonic() < deadline, f"Milvus was not healthy within {STARTED_SECONDS} s"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it answer nothing and break nothing off while the block lasts."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _move_etcd(self, port: int, peer: int) -> None:
        """Let the etcd within have ports of its own, so that two servers can run beside each other."""
        file, config = self._folder / "etcd.yaml", self._folder / "configs" / "milvus.yaml"
        here, there = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
        lines = {
            "name": "default",
            "data-dir": self._folder / "data" / "etcd.data",
            "listen-client-urls": here,
            "advertise-client-urls": here,
            "listen-peer-urls": there,
            "initial-advertise-peer-urls": there,
            "initial-cluster": f"default={there}",
        }
        file.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
        config.write_text(config.read_text().replace("\netcd:\n", f"\netcd:\n  config:\n    path: {file}\n", 1))

    def _healthy(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self._health}/healthz", timeout=5) as response,
        ):
            return b"OK" in response.read()
        return False


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody has now."""
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(count):
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
        return found
