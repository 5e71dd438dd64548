"""A Ray cluster: joined or made here, and processes on it. Nothing else imports ray."""

import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from reidserve.embed.cores import cores
from reidserve.errors import ClusterError

INSTALL = "pip install 'reidserve[cpu,ray]'"
LOCAL = "local"
"""The address of a cluster that is this machine alone and lasts as long as it is used."""

_LOOPBACK = "127.0.0.1"
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # its makers are told of each use
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # GPUs are hidden from whoever asked for none, with a warning
    # Lines that its processes write would stand among ours: none is.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
}


class Cluster:
    """Processes on the machines of a Ray cluster that this process has joined.

    A process is an object of a class, made there; a call of a method is a Future here, which fails with the method's
    own exception, or with another one where the process ended.

    Raises:
        ClusterError: Ray is not installed.
    """

    def __init__(self) -> None:
        self._ray = _load()

    def room(self, *, processors: int, gpus: int) -> int:
        """How many processes of that size fit into the cluster, were it theirs alone."""
        fitting = 0
        for node in self._ray.nodes():
            offered = node["Resources"] if node["Alive"] else {}
            sizes = {"CPU": processors, "GPU": gpus}
            fitting += min(int(offered.get(name, 0) // size) for name, size in sizes.items() if size)
        return fitting

    def share(self, value: object) -> object:
        """A value that arguments of calls may stand for, sent to each machine once."""
        shared: object = self._ray.put(value)
        return shared

    def start(self, kind: type, *, processors: int, gpus: int) -> Any:  # noqa: ANN401  # Ray's handles have no types
        """Ask for a process; it is somewhere as soon as there is room."""
        return self._ray.remote(num_cpus=processors, num_gpus=gpus)(kind).remote()

    def call(self, process: Any, method: str, *arguments: object) -> Future[Any]:  # noqa: ANN401
        """Call a method in a process, after what was called there before."""
        future: Future[Any] = getattr(process, method).remote(*arguments).future()
        return future

    def has_ended(self, error: BaseException) -> bool:
        """Whether a call failed because its process did, or is not reached."""
        return not isinstance(error, self._ray.exceptions.RayTaskError)

    def end(self, process: Any) -> None:  # noqa: ANN401
        """End a process, wherever it is."""
        self._ray.kill(process)


def node() -> str:
    """The machine that this process of a cluster runs on, by its address."""
    address: str = _load().util.get_node_ip_address()
    return address


def fault(error: BaseException) -> str:
    """What was wrong, in a line, without the stack that Ray puts before it."""
    return str(getattr(error, "cause", None) or error.__cause__ or error).strip().rpartition("\n")[2]


@contextmanager
def joined(address: str) -> Iterator[Cluster]:
    """Be part of the cluster at `address`, or of a LOCAL one, as long as the block lasts.

    Raises:
        ClusterError: Ray is not installed, or there is no such cluster.
    """
    with ExitStack() as held:
        # Read while Ray is imported.
        held.enter_context(_environment(_SETTINGS | (_local_settings() if address == LOCAL else {})))
        ray = _load()
        options: dict[str, Any] = {}
        if address == LOCAL:
            # Its sockets lie there too, and their names may not be long.
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
            options = {"num_cpus": cores(), "include_dashboard": False, "_temp_dir": folder}
        on_terminate = signal.getsignal(signal.SIGTERM)
        held.callback(ray.shutdown)
        try:
            with _silence():
                ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except Exception as error:
            raise ClusterError(f"no Ray cluster at {address}: {fault(error)}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own in its place
        if address == LOCAL and (found := node()) != _LOOPBACK:
            raise ClusterError(f"expected a local cluster on {_LOOPBACK}, it is on {found}: Ray was imported before")
        yield Cluster()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what Ray's C++ writes to standard error to itself: what matters is raised."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _local_settings() -> dict[str, str]:
    return {
        # Where Ray takes clusters to be impossible it listens on loopback, else on all of the machine's addresses.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A token of its own: it would leave one in the home of whoever builds.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def _load() -> Any:  # noqa: ANN401
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"a cluster needs Ray, which is not installed: {INSTALL}") from error
    return ray
