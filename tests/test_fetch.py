"""Weights from a URL, against a real HTTP server: verified, kept whole or not at all, never trusted at first sight."""

import contextlib
import functools
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reidserve.errors import CheckpointError, UsageError

pytest.importorskip("torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import fetch as module
from reidserve.export.checkpoints.fetch import fetch
from reidserve.export.files import cache_folder

WEIGHTS = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
OTHER = hashlib.sha256(b"something else").hexdigest()


@dataclass
class Site:
    """What a server gives by path, or where it points to, and what it was asked for."""

    pages: dict[str, bytes]
    elsewhere: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""
    released: threading.Event = field(default_factory=threading.Event)


class Pages(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *arguments) -> None:
        self.site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.site.asked.append(self.path)
        if self.path in self.site.elsewhere:
            self.send_response(302)
            self.send_header("Location", self.site.elsewhere[self.path])
            self.end_headers()
            return
        page = self.site.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/huge":
            self.send_header("Content-Length", str(2**40))
        elif self.path != "/unmeasured":
            self.send_header("Content-Length", str(len(page) + (self.path == "/cut-off")))
        self.end_headers()
        # A client that has heard enough leaves.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(page)
        if self.path == "/slow":
            self.site.released.wait(60)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(dict.fromkeys(("/weights.pth", "/unmeasured", "/cut-off", "/huge"), WEIGHTS))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, site))
    site.address = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield site
    site.released.set()
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reidserve" / "pretrained"


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_what_is_fetched_is_kept_under_its_sha256_and_never_fetched_again(site: Site, cache: Path):
    heard: list[tuple[int, int]] = []
    path = fetch(f"{site.address}/weights.pth#sha256={SHA256}", progress=lambda *at: heard.append(at))
    assert path == cache / SHA256
    assert path.read_bytes() == WEIGHTS
    assert heard[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert len(heard) > 1
    assert fetch(f"{site.address}/gone#sha256={SHA256.upper()}") == path
    assert site.asked == ["/weights.pth"]
    assert kept(cache) == [SHA256]


def test_a_length_that_the_server_does_not_say_is_heard_as_0(site: Site):
    heard: list[tuple[int, int]] = []
    fetch(f"{site.address}/unmeasured#sha256={SHA256}", progress=lambda *at: heard.append(at))
    assert heard[-1] == (len(WEIGHTS), 0)


def test_a_wrong_sum_is_refused_and_nothing_is_kept(site: Site, cache: Path):
    with pytest.raises(CheckpointError, match=f"its sha256 is {SHA256}, {OTHER} was said"):
        fetch(f"{site.address}/weights.pth#sha256={OTHER}")
    assert kept(cache) == []


@pytest.mark.parametrize("fragment", ["", "#", "#sha256=", f"#{SHA256}", f"#sha256={SHA256[:-1]}", f"#md5={SHA256}"])
def test_a_url_without_a_sha256_is_refused_before_anything_is_asked_for(site: Site, fragment: str):
    with pytest.raises(UsageError, match=r"weights\.pth says no sha256: give .*weights\.pth#sha256=HEX") as refusal:
        fetch(f"{site.address}/weights.pth{fragment}")
    assert site.asked == []
    assert SHA256 not in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["http://example.org/w.pth", "ftp://localhost/w.pth", "file:///etc/passwd", "HTTP://a/b"]
)
def test_only_https_and_this_machine_are_fetched_from(url: str):
    with pytest.raises(UsageError, match="weights are fetched by https, or by http from this machine, got "):
        fetch(f"{url}#sha256={SHA256}")


def test_what_cannot_be_fetched_is_refused_by_its_url(site: Site, cache: Path):
    for url, message in (
        (f"{site.address}/missing", "/missing cannot be fetched: HTTP Error 404: Not Found"),
        (f"{site.address}/cut-off", f"/cut-off was cut off after {len(WEIGHTS)} of {len(WEIGHTS) + 1} bytes"),
        (f"{site.address}/huge", "/huge is larger than 2147483648 bytes"),
        ("http://127.0.0.1:1/weights.pth", "weights.pth cannot be fetched: .*refused"),
        ("https://[::1/weights.pth", "is no URL: Invalid IPv6 URL"),
    ):
        with pytest.raises((CheckpointError, UsageError), match=message):
            fetch(f"{url}#sha256={SHA256}")
    assert kept(cache) == []


def test_a_server_may_point_elsewhere_but_not_where_nothing_is_fetched_from(site: Site, cache: Path):
    site.elsewhere = {"/moved": "/weights.pth", "/out": "http://192.0.2.1/w.pth", "/round": "/round"}
    for path, message in (
        ("/out", r"/out cannot be fetched: weights are fetched by https, .*, got http://192\.0\.2\.1/w\.pth"),
        ("/round", "/round cannot be fetched: .*infinite loop"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fetch(f"{site.address}{path}#sha256={SHA256}")
    assert kept(cache) == []
    assert fetch(f"{site.address}/moved#sha256={SHA256}").read_bytes() == WEIGHTS


def test_more_bytes_than_are_accepted_are_not_read_to_their_end(site: Site, cache: Path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 2**20)
    with pytest.raises(CheckpointError, match="/unmeasured is larger than 1048576 bytes"):
        fetch(f"{site.address}/unmeasured#sha256={SHA256}")
    assert kept(cache) == []


def test_a_damaged_file_in_the_cache_is_fetched_anew(site: Site, cache: Path):
    source = f"{site.address}/weights.pth#sha256={SHA256}"
    fetch(source).write_bytes(WEIGHTS[:100])
    assert fetch(source).read_bytes() == WEIGHTS
    assert site.asked == ["/weights.pth", "/weights.pth"]


def test_a_file_is_taken_where_it_stands(tmp_path: Path):
    assert fetch(str(tmp_path / "weights.pth#sha256=1")) == tmp_path / "weights.pth#sha256=1"


def test_a_relative_cache_folder_counts_as_none(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for told in ("", "here"):
        monkeypatch.setenv("XDG_CACHE_HOME", told)
        assert cache_folder() == tmp_path / ".cache" / "reidserve"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_while_it_fetches_leaves_nothing_behind(site: Site, cache: Path, number: int):
    site.pages["/slow"] = WEIGHTS[:1000]
    code = "import sys; from reidserve.export.checkpoints.fetch import fetch; fetch(sys.argv[1])"
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", code, f"{site.address}/slow#sha256={SHA256}"],
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    deadline = time.monotonic() + 60
    while "/slow" not in site.asked and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    assert child.wait(30) != 0
    assert kept(cache) == []
