import json
import logging
import resource
import signal
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reidserve.errors import ConfigError
from reidserve.server.call import ANYONE, Call, Caller
from reidserve.server.guard.audit import Audit
from reidserve.server.guard.keys import make_secret

CALL = Call(
    "reid.v1.GalleryService/BatchUpsertEntries",
    "7f3a",
    Caller("cameras", {"write": None}),
    deadline=0.0,
    peer="ipv4:10.0.0.7:51234",
)


def lines(path: Path) -> list[dict]:
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_line_says_who_did_what_where_when_and_how_it_ended(path):
    audit = Audit(path)
    audit.record(CALL, "upsert", "mall", entries=3, written=2, generation=7, result="done")
    (line,) = lines(path)
    time = datetime.fromisoformat(line.pop("time"))
    assert timedelta() <= datetime.now(UTC) - time < timedelta(minutes=1)
    assert line == {
        "request_id": "7f3a",
        "caller": "cameras",
        "peer": "ipv4:10.0.0.7:51234",
        "method": "reid.v1.GalleryService/BatchUpsertEntries",
        "what": "upsert",
        "gallery": "mall",
        "entries": 3,
        "written": 2,
        "generation": 7,
        "result": "done",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_times_are_utc_to_the_microsecond(path):
    audit = Audit(path)
    for _ in range(20):
        audit.record(CALL, "upsert", None)
    times = [line["time"] for line in lines(path)]
    assert all(len(time) == len("2026-11-22T15:00:00.000000Z") and time.endswith("Z") for time in times)
    assert times == sorted(times)


def test_lines_are_added_to_what_is_there(path):
    path.write_text('{"old": 1}\n')
    Audit(path).record(CALL, "upsert", "mall")
    Audit(path).record(CALL, "delete", "mall")
    assert [line.get("what") for line in lines(path)] == [None, "upsert", "delete"]


@pytest.mark.parametrize("text", ["two\nlines\r\n", "é\u2028\u202e", "\x1b[31m\x7f\x9b", "a\udcff", '"}\\'])
def test_a_text_that_steers_is_one_line_of_ascii(path, text):
    audit = Audit(path)
    audit.record(Call("m", text, ANYONE, 0.0, text), text, text, result=text)
    raw = path.read_bytes()
    assert raw.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in raw[:-1])
    (line,) = lines(path)
    assert [line[name] for name in ("request_id", "peer", "what", "gallery", "result")] == [text] * 5


def test_secrets_and_long_texts_are_cut(path):
    _, token = make_secret()
    audit = Audit(path)
    audit.record(Call("m", token, ANYONE, 0.0), "upsert", "x" * 460 + token, result="y" * 10_000)
    assert token[18:30] not in path.read_text()
    (line,) = lines(path)
    assert line["request_id"] == f"{token[:17]}_(secret)"
    assert line["result"] == "y" * 500


@pytest.mark.parametrize("facts", [{"image": b"\xff\xd8"}, {"embedding": [0.1, 0.2]}, {"caller": "another"}])
def test_bytes_lists_and_names_that_are_taken_are_refused(path, facts):
    audit = Audit(path)
    with pytest.raises(TypeError, match=next(iter(facts))):
        audit.record(CALL, "upsert", "mall", **facts)
    assert path.read_bytes() == b""


def test_a_file_that_was_moved_away_is_begun_again(path):
    audit = Audit(path)
    audit.record(CALL, "first", None)
    moved = path.with_name("audit.jsonl.1")
    path.rename(moved)
    audit.record(CALL, "second", None)
    path.unlink()
    audit.record(CALL, "third", None)
    assert [line["what"] for line in lines(moved)] == ["first"]
    assert [line["what"] for line in lines(path)] == ["third"]
    # logrotate's create: the new file is there before anything is written.
    path.rename(moved)
    path.touch(0o600)
    audit.record(CALL, "fourth", None)
    assert [line["what"] for line in lines(path)] == ["fourth"]


def test_rotating_leaves_no_file_open(path):
    audit = Audit(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(50):
        audit.record(CALL, "upsert", None)
        path.rename(path.with_name(f"old{number}"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    audit.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def test_lines_of_many_threads_and_servers_do_not_mix(path):
    audits = [Audit(path), Audit(path)]

    def write(number: int) -> None:
        for turn in range(100):
            audits[number % 2].record(CALL, "upsert", "mall" * 50, number=number, turn=turn)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [(line["number"], line["turn"]) for line in lines(path)]
    assert sorted(written) == [(number, turn) for number in range(4) for turn in range(100)]


def test_what_a_full_disk_does_not_take_goes_whole_to_the_servers_log_and_the_next_line_is_whole(path, caplog):
    audit = Audit(path)
    audit.record(CALL, "first", "mall")
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # A file that may grow by 40 bytes: the line is cut, as on a disk that fills.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, hard))
    try:
        audit.record(CALL, "second", "mall", entries=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    (logged,) = caplog.records
    assert logged.levelno == logging.ERROR
    assert "cannot be written (File too large)" in logged.getMessage()
    line = json.loads(logged.getMessage().partition("): ")[2])
    assert (line["what"], line["entries"]) == ("second", 2)
    audit.record(CALL, "third", "mall")
    first, cut, third = path.read_text().splitlines()
    assert len(cut) == 40
    assert [json.loads(whole)["what"] for whole in (first, third)] == ["first", "third"]


def test_a_device_that_is_full_is_no_file_and_a_link_is_not_followed(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be appended to"):
        Audit(path)
    assert not (tmp_path / "elsewhere").exists()
    for other in (Path("/dev/full"), tmp_path, tmp_path / "missing" / "audit.jsonl"):
        with pytest.raises(ConfigError, match=f"audit log {other} cannot be appended to"):
            Audit(other)


def test_a_folder_that_is_gone_does_not_end_a_call(path, tmp_path, caplog):
    folder = tmp_path / "logs"
    folder.mkdir()
    audit = Audit(folder / "audit.jsonl")
    (folder / "audit.jsonl").unlink()
    folder.rmdir()
    audit.record(CALL, "upsert", "mall")
    assert '"what": "upsert"' in caplog.records[-1].getMessage()
    folder.mkdir()
    audit.record(CALL, "delete", "mall")
    assert [line["what"] for line in lines(folder / "audit.jsonl")] == ["delete"]


def test_without_a_file_lines_go_to_the_servers_log(caplog):
    with caplog.at_level(logging.INFO):
        Audit().record(CALL, "upsert", "mall", entries=1)
    (logged,) = caplog.records
    assert logged.levelno == logging.INFO
    assert json.loads(logged.getMessage().removeprefix("audit: "))["entries"] == 1
