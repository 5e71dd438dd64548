import json
import logging
import os
import re
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reidserve.commands.console import make_app
from reidserve.commands.keys import app
from reidserve.errors import ConfigError, PermissionDeniedError, UnauthenticatedError, UsageError
from reidserve.server.call import ANYONE, Arrival, join_metadata
from reidserve.server.guard.gate import Gate
from reidserve.server.guard.keys import Key, Keys, add_key, make_secret, redact, revoke_key, rotate_key
from reidserve.server.guard.keys_file import change_keys, read_keys
from reidserve.server.guard.private import write_private

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


def arrive(*authorization: str) -> Arrival:
    pairs = [("User-Agent", "test"), *(("Authorization", value) for value in authorization)]
    return Arrival(join_metadata(pairs), "ipv4:127.0.0.1:1", "grpc")


def with_key(token: str) -> Arrival:
    return arrive(f"Bearer {token}")


def add(path: Path, name: str, *, expires: datetime | None = None, **said) -> str:
    """Add a key to a file of keys; its token."""
    secret, token = make_secret(expires=expires)
    key = Key(name=name, scopes=said.pop("scopes", {"search": ("*",)}), secrets=(secret,), **said)
    change_keys(path, lambda keys: add_key(keys, key))
    return token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def gate(path: Path) -> Gate:
    return Gate(path, look_seconds=0)


# Who is let in


def test_a_key_is_let_in_under_its_name_and_may_what_it_says(path):
    token = add(path, "cameras", scopes={"search": ("mall", "station"), "write": ("*",)})
    caller = gate(path).admit(with_key(token))
    assert caller.name == "cameras"
    assert caller.scopes == {"search": {"mall", "station"}, "write": None}
    caller.check("search", "mall")
    caller.check("search")
    caller.check("write", "anywhere")
    with pytest.raises(PermissionDeniedError, match="key 'cameras' does not allow scope search in gallery 'airport'"):
        caller.check("search", "airport")
    with pytest.raises(PermissionDeniedError, match="scope admin"):
        caller.check("admin")


def test_without_a_file_of_keys_everyone_is_anyone():
    assert Gate().admit(arrive()) is ANYONE
    assert Gate().admit(arrive("Bearer nonsense")) is ANYONE
    Gate().spend(ANYONE, 10**9)


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
def test_the_scheme_may_be_written_in_any_case(path, scheme):
    token = add(path, "cameras")
    assert gate(path).admit(arrive(scheme + token)).name == "cameras"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("", "must be one key"),
        ("{token}", "must be one key"),
        ("Bearer", "must be one key"),
        ("Basic {token}", "must be one key"),
        ("Bearer{token}", "must be one key"),
        ("Bearer {token} ", "must be one key"),
        ("Bearer {token}\n", "must be one key"),
        ("Bearer {token},", "must be one key"),
        ("Bearer {token}, Bearer {token}", "must be one key"),
        ("Bearer {token} {token}", "must be one key"),
        ("Bearer {token}0", "must be one key"),
        ("Bearer {upper}", "must be one key"),
        ("Bearer {wide}", "must be one key"),
        ("Ｂearer {token}", "must be one key"),
        ("Bearer {other_secret}", "not known to this server"),
        ("Bearer {other_id}", "not known to this server"),
    ],
)
def test_what_is_no_known_key_is_refused_and_its_secret_is_not_said(path, shape, message):
    token = add(path, "cameras")
    last = "0" if token[-1] != "0" else "1"
    shapes = {
        "token": token,
        "upper": f"reid_{token[5:].upper()}",
        "wide": token[:-1] + chr(ord("０") + int(token[-1], 16) % 10),
        "other_secret": token[:-1] + last,
        "other_id": f"reid_{'0' * 12}_{token[18:]}",
    }
    with pytest.raises(UnauthenticatedError, match=message) as refused:
        gate(path).admit(arrive(shape.format(**shapes)))
    assert token[18:30] not in str(refused.value)
    assert token[18:30].upper() not in str(refused.value)


def test_no_key_and_two_keys_are_refused(path):
    one, other = add(path, "one"), add(path, "other")
    guarded = gate(path)
    with pytest.raises(UnauthenticatedError, match="asks for a key: send authorization: Bearer reid_"):
        guarded.admit(arrive())
    for first, second in ((one, other), (one, one)):
        with pytest.raises(UnauthenticatedError, match="must be one key"):
            guarded.admit(arrive(f"Bearer {first}", f"Bearer {second}"))


def test_metadata_is_found_in_any_case_and_values_that_are_bytes_are_none():
    joined = join_metadata([("A", "1"), ("b-bin", b"2"), ("a", "3"), ("C", "4")])
    assert joined == {"a": "1, 3", "c": "4"}


def test_an_unknown_id_costs_what_a_wrong_secret_costs(path):
    token = add(path, "cameras")
    guarded = gate(path)
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    unknown = f"reid_{'0' * 12}_{token[18:]}"

    def computed(presented: str) -> list[str]:
        calls = []

        def note(frame, event, argument):
            if event == "c_call":
                calls.append(argument.__name__)

        arrival = with_key(presented)
        sys.setprofile(note)
        try:
            guarded.admit(arrival)
        except UnauthenticatedError:
            pass
        finally:
            sys.setprofile(None)
        return calls

    assert computed(wrong) == computed(unknown)
    assert {"openssl_sha256", "compare_digest"} <= set(computed(unknown))


def test_a_secret_that_expired_is_refused_and_says_when(path):
    past = datetime.now(UTC) - timedelta(seconds=1)
    old = add(path, "old", expires=past)
    new = add(path, "new", expires=past + timedelta(hours=1))
    guarded = gate(path)
    assert guarded.admit(with_key(new)).name == "new"
    with pytest.raises(UnauthenticatedError, match=re.escape(f"a secret of key 'old' expired at {past}")):
        guarded.admit(with_key(old))


# Changing keys


def test_both_secrets_of_a_rotation_are_good_until_one_is_revoked(path):
    first = add(path, "cameras")
    guarded = gate(path)
    secret, second = make_secret()
    change_keys(path, lambda keys: rotate_key(keys, "cameras", secret))
    assert {guarded.admit(with_key(token)).name for token in (first, second)} == {"cameras"}
    with pytest.raises(ConfigError, match=f"2 active secrets already, {first[5:17]} and {second[5:17]}"):
        change_keys(path, lambda keys: rotate_key(keys, "cameras", make_secret()[0]))
    change_keys(path, lambda keys: revoke_key(keys, "cameras", first[5:17]))
    assert guarded.admit(with_key(second)).name == "cameras"
    with pytest.raises(UnauthenticatedError):
        guarded.admit(with_key(first))


def test_a_secret_that_expired_makes_room_for_another(path):
    add(path, "cameras", expires=datetime.now(UTC) - timedelta(days=1))
    for _ in range(2):
        change_keys(path, lambda keys: rotate_key(keys, "cameras", make_secret()[0]))
    assert all(secret.expires is None for secret in read_keys(path).named("cameras").secrets)
    assert len(read_keys(path).named("cameras").secrets) == 2


def test_a_key_goes_with_its_last_secret_and_others_stay(path):
    token = add(path, "gone")
    other = add(path, "stays")
    change_keys(path, lambda keys: revoke_key(keys, "gone", token[5:17]))
    assert [key.name for key in read_keys(path).keys] == ["stays"]
    assert gate(path).admit(with_key(other)).name == "stays"
    with pytest.raises(ConfigError, match="no key 'gone': there are stays"):
        change_keys(path, lambda keys: revoke_key(keys, "gone"))
    with pytest.raises(ConfigError, match="key 'stays' has no secret 'ffff'"):
        change_keys(path, lambda keys: revoke_key(keys, "stays", "ffff"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"name": ""}, "1 to 64 ASCII letters"),
        ({"name": "caméras"}, "1 to 64 ASCII letters"),
        ({"name": "a\n"}, "1 to 64 ASCII letters"),
        ({"name": "anyone"}, "and not 'anyone'"),
        ({"scopes": {}}, "allows nothing"),
        ({"scopes": {"search": ()}}, "must name galleries for scope search"),
        ({"scopes": {"search": ("",)}}, "must name galleries for scope search"),
        ({"images_per_second": 0.0}, "images_per_second must be above 0"),
        ({"images_per_second": float("nan")}, "images_per_second must be above 0"),
        ({"burst": -1.0}, "burst must be above 0"),
    ],
)
def test_a_key_that_cannot_be_is_refused(said, message):
    with pytest.raises(ConfigError, match=message):
        Key(**{"name": "cameras", "scopes": {"search": ("*",)}, "secrets": (), **said})


def test_a_name_and_an_id_are_there_once(path):
    add(path, "cameras")
    with pytest.raises(ConfigError, match="there is a key 'cameras' already"):
        add(path, "cameras")
    key = read_keys(path).named("cameras")
    with pytest.raises(ConfigError, match="more than one key is named 'cameras'"):
        Keys(keys=(key, key))
    with pytest.raises(ConfigError, match=f"more than one secret has the id '{key.secrets[0].id}'"):
        Keys(keys=(key, Key(name="other", scopes=key.scopes, secrets=key.secrets)))


def test_changes_at_the_same_time_are_all_made(path):
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda number: add(path, f"key{number}"), range(24)))
    assert sorted(key.name for key in read_keys(path).keys) == sorted(f"key{number}" for number in range(24))
    assert gate(path).admit(with_key(tokens[7])).name == "key7"
    assert list(path.parent.iterdir()) == [path]


# The file


def test_the_file_has_mode_0600_and_no_secret(path):
    before = os.umask(0)
    try:
        token = add(path, "cameras")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token[5:17] in path.read_text()
    assert token[18:] not in path.read_text()
    assert token[18:] not in repr(read_keys(path))


@pytest.mark.parametrize(
    ("mode", "good"), [(0o400, True), (0o640, True), (0o660, False), (0o604, False), (0o602, False)]
)
def test_a_file_that_others_may_read_or_change_is_refused(path, mode, good):
    add(path, "cameras")
    path.chmod(mode)
    if good:
        assert [key.name for key in read_keys(path).keys] == ["cameras"]
    else:
        with pytest.raises(ConfigError, match=f"is open to others .mode {mode:04o}.: chmod 600"):
            Gate(path)


@as_root
def test_a_file_of_another_user_is_refused_and_root_leaves_owners_as_they_are(path):
    add(path, "cameras")
    os.chown(path, 12345, 12345)
    with pytest.raises(
        ConfigError, match=r"must belong to the user of this process \(0\) or to root, and belongs to user 12345"
    ):
        read_keys(path)
    path.chmod(0o640)
    write_private(path, b"{}")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 12345, 0o640)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no file of keys"),
        ("{", "is no file of keys"),
        ("[" * 100_000, "is no file of keys"),
        ('{"format": 2, "keys": []}', "is no file of keys: Invalid enum value 2"),
        ('{"format": 1, "keys": [], "key": []}', "unknown field `key`"),
        (
            '{"format": 1, "keys": [{"name": "a", "scopes": {"root": ["*"]}, "secrets": []}]}',
            "Invalid enum value 'root'",
        ),
        ('{"format": 1, "keys": [{"name": "a", "scopes": {"search": "*"}, "secrets": []}]}', "Expected `array`"),
        ('{"format": 1, "keys": [{"name": "a", "scopes": {"search": []}, "secrets": []}]}', "must name galleries"),
    ],
)
def test_a_file_that_is_none_of_keys_is_refused_by_name(path, text, message):
    write_private(path, text.encode())
    with pytest.raises(ConfigError, match=re.escape(str(path))) as refused:
        Gate(path)
    assert message in str(refused.value)


def test_what_is_no_file_is_refused_without_waiting(path, tmp_path):
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="must be a file"):
        Gate(path)
    with pytest.raises(ConfigError, match=r"(must be a file|cannot be read)"):
        Gate(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Gate(tmp_path / "missing")


def test_a_link_is_followed_and_stays_a_link(path, tmp_path):
    real = tmp_path / "data" / "keys.json"
    real.parent.mkdir()
    token = add(real, "cameras")
    path.symlink_to(real)
    guarded = gate(path)
    assert guarded.admit(with_key(token)).name == "cameras"
    second = add(path, "second")
    assert path.is_symlink()
    assert guarded.admit(with_key(second)).name == "second"
    real.chmod(0o644)
    with pytest.raises(ConfigError, match="open to others"):
        Gate(path)


def test_a_link_that_leads_elsewhere_is_a_changed_file(path, tmp_path):
    tokens = {name: add(tmp_path / name, name) for name in ("old", "new")}
    path.symlink_to("old")
    guarded = gate(path)
    guarded.admit(with_key(tokens["old"]))
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").rename(path)
    assert guarded.admit(with_key(tokens["new"])).name == "new"
    with pytest.raises(UnauthenticatedError):
        guarded.admit(with_key(tokens["old"]))


def test_a_broken_file_keeps_the_keys_that_were_read_and_is_logged_once(path, caplog):
    token = add(path, "cameras")
    guarded = gate(path)
    whole = path.read_bytes()
    path.write_text('{"format": 1, "keys": "')
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert guarded.admit(with_key(token)).name == "cameras"
        (line,) = caplog.records
        assert (line.levelname, token[18:] in line.getMessage()) == ("ERROR", False)
        assert "cannot be taken, what was read before goes on" in line.getMessage()
        path.unlink()
        assert guarded.admit(with_key(token)).name == "cameras"
        assert "No such file" in caplog.records[-1].getMessage()
        write_private(path, whole)
        path.chmod(0o666)
        assert guarded.admit(with_key(token)).name == "cameras"
        assert "open to others (mode 0666)" in caplog.records[-1].getMessage()
        # Only its permissions are mended, and revoking is heard again.
        path.chmod(0o600)
        guarded.admit(with_key(token))
        assert "was read again" in caplog.records[-1].getMessage()
        change_keys(path, lambda keys: revoke_key(keys, "cameras"))
        with pytest.raises(UnauthenticatedError):
            guarded.admit(with_key(token))


def test_a_change_of_equal_size_and_time_is_seen(path):
    old, new = add(path, "old"), add(path.with_name("other"), "new")
    guarded = gate(path)
    guarded.admit(with_key(old))
    before = path.stat()
    assert path.with_name("other").stat().st_size == before.st_size
    path.write_bytes(path.with_name("other").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert guarded.admit(with_key(new)).name == "new"


def test_the_file_is_looked_at_once_a_second_at_most(path):
    token = add(path, "cameras")
    guarded = Gate(path, look_seconds=3600)
    change_keys(path, lambda keys: revoke_key(keys, "cameras"))
    assert guarded.admit(with_key(token)).name == "cameras"


# The commands


def run_keys(path: Path, *arguments: str) -> None:
    root = make_app("reid-serve")
    root.command(app)
    root(["keys", *arguments, "--keys", str(path)])


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_keys_are_made_rotated_revoked_and_listed_from_the_command_line(path, capsys):
    run_keys(
        path, "add", "cameras", "--scope", "search:mall,station", "--scope", "write:mall", "--rate", "50", "--json"
    )
    made = printed(capsys)
    assert made["scopes"] == {"search": ["mall", "station"], "write": ["mall"]}
    assert (made["images_per_second"], made["burst"], made["secrets"][0]["expires"]) == (50.0, None, None)
    assert made["key"].startswith(f"reid_{made['secret']}_")
    assert gate(path).admit(with_key(made["key"])).name == "cameras"

    run_keys(path, "rotate", "cameras", "--days", "30", "--json")
    rotated = printed(capsys)
    assert [secret["id"] for secret in rotated["secrets"]] == [made["secret"], rotated["secret"]]
    lasts = datetime.fromisoformat(rotated["secrets"][1]["expires"]) - datetime.now(UTC)
    assert timedelta(days=29) < lasts <= timedelta(days=30)
    assert gate(path).admit(with_key(rotated["key"])).name == "cameras"

    run_keys(path, "revoke", "cameras", "--secret", made["secret"], "--json")
    assert printed(capsys) == {"name": "cameras", "secret": made["secret"], "left": [rotated["secret"]]}
    run_keys(path, "list", "--json")
    (listed,) = printed(capsys)["keys"]
    assert ([secret["id"] for secret in listed["secrets"]], listed["name"]) == ([rotated["secret"]], "cameras")
    assert "key" not in listed

    run_keys(path, "list")
    shown = capsys.readouterr().out
    assert shown.startswith("cameras  search:mall,station write:mall  50 images/s\n")
    assert f"{rotated['secret']}  created {datetime.now(UTC):%Y-%m}" in shown
    assert rotated["key"][18:] not in shown
    run_keys(path, "revoke", "cameras")
    assert capsys.readouterr().out == "revoked  cameras\nleft     none\n"
    run_keys(path, "list")
    assert capsys.readouterr().out == "no keys\n"


def test_a_scope_without_galleries_is_of_all_and_the_secret_is_on_standard_output_alone(path, capsys):
    run_keys(path, "add", "all", "--scope", "search", "--scope", "admin:*")
    out, err = capsys.readouterr()
    (token,) = re.findall(r"reid_[0-9a-f]{12}_[0-9a-f]{64}", out)
    assert token not in err
    assert "printed this once" in err
    assert gate(path).admit(with_key(token)).scopes == {"search": None, "admin": None}


def test_the_file_may_be_named_by_the_environment_and_the_servers_other_settings_are_nothing_to_it(
    path, capsys, monkeypatch
):
    def refuse(*arguments: object) -> None:
        raise AssertionError("the server's settings were read")

    root = make_app("reid-serve")
    root.config = (refuse,)
    root.command(app)
    monkeypatch.setenv("REIDSERVE_KEYS", str(path))
    root(["keys", "add", "cameras", "--scope", "search", "--json"])
    assert gate(path).admit(with_key(printed(capsys)["key"])).name == "cameras"


@pytest.mark.parametrize("scope", ["root", "search:", "search:mall,", "Search", ":mall", ""])
def test_a_scope_that_is_none_is_refused_and_no_file_is_made(path, scope):
    with pytest.raises(UsageError, match="--scope: expected"):
        run_keys(path, "add", "cameras", "--scope", scope)
    assert not path.exists()


@pytest.mark.parametrize("days", ["0", "-1", "nan", "1e9"])
def test_days_that_are_none_are_refused(path, days):
    with pytest.raises(UsageError, match="--days must be above 0"):
        run_keys(path, "add", "cameras", "--scope", "search", f"--days={days}")
    assert not path.exists()


def test_a_key_in_a_text_loses_its_secret():
    _, token = make_secret()
    assert redact(f"got {token}, {token}!") == f"got {token[:17]}_(secret), {token[:17]}_(secret)!"
