"""reid-serve keys: who may ask a server, and for what."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from reidserve.commands.console import Json, print_facts, print_json, print_lines, quiet_grpc, warn_lines
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.server.call import Scope
    from reidserve.server.guard.keys import Key, Secret

KeysFile = Annotated[
    Path,
    Parameter(
        name="--keys",
        env_var="REIDSERVE_KEYS",
        help="The file of the server's keys. A running server takes changes within about a second.",
    ),
]
Days = Annotated[
    float | None,
    Parameter(show_default=False, help="After so many days the secret is worth nothing; without it, it never expires."),
]
MOST_DAYS = 36_500

app = App(
    name="keys",
    help="Keep a server's keys: who may ask it, for what, and how often. Of secrets the file has only hashes; a secret "
    "is printed when it is made, and never again.",
    # What the server was told in the environment or a file says nothing to these commands, but for --keys.
    config=(),
)


@app.command
def add(
    name: str,
    *,
    keys: KeysFile,
    scope: Annotated[list[str], Parameter(negative="")],
    rate: float | None = None,
    burst: float | None = None,
    days: Days = None,
    json: Json = False,
) -> None:
    """Make a key and print its secret, once.

    Args:
        name: Whose key it is, in logs and the audit log.
        scope: What it may do: search, write or admin, in all galleries, or, as in search:mall,station, in these. May be
            given several times.
        rate: Images it may send in a second in the long run; without it, as many as the server admits.
        burst: Images it may send at once after a pause; without it, those of one second.
    """
    quiet_grpc()

    from reidserve.server.guard.keys import Key, add_key, make_secret
    from reidserve.server.guard.keys_file import change_keys

    secret, token = make_secret(expires=_expiry(days))
    key = Key(name=name, scopes=_read_scopes(scope), images_per_second=rate, burst=burst, secrets=(secret,))
    change_keys(keys, lambda known: add_key(known, key))
    _tell_secret(key, secret, token, json=json)


@app.command
def rotate(name: str, *, keys: KeysFile, days: Days = None, json: Json = False) -> None:
    """Make another secret for a key and print it, once; the one in use goes on until it is revoked.

    Args:
        name: The key's name.
    """
    quiet_grpc()

    from reidserve.server.guard.keys import make_secret, rotate_key
    from reidserve.server.guard.keys_file import change_keys

    secret, token = make_secret(expires=_expiry(days))
    key = change_keys(keys, lambda known: rotate_key(known, name, secret)).named(name)
    _tell_secret(key, secret, token, json=json)


@app.command
def revoke(name: str, *, keys: KeysFile, secret: str | None = None, json: Json = False) -> None:
    """Take a key away, or one of its secrets; with its last secret the key is gone.

    Args:
        name: The key's name.
        secret: The id of the secret, the part between reid_ and the next underscore.
    """
    quiet_grpc()

    from reidserve.server.guard.keys import revoke_key
    from reidserve.server.guard.keys_file import change_keys

    changed = change_keys(keys, lambda known: revoke_key(known, name, secret))
    left = [kept.id for key in changed.keys if key.name == name for kept in key.secrets]
    if json:
        print_json({"name": name, "secret": secret, "left": left})
    else:
        print_facts({"revoked": name if secret is None else f"{name} {secret}", "left": ", ".join(left) or "none"})


@app.command(name="list")
def list_(*, keys: KeysFile, json: Json = False) -> None:
    """List the keys: what each may do, and the ids of its secrets."""
    quiet_grpc()

    from reidserve.server.guard.keys_file import read_keys

    known = read_keys(keys).keys
    if json:
        print_json({"keys": [_facts(key) for key in known]})
        return
    now = datetime.now(UTC)
    for key in known:
        print_lines([f"{key.name}  {_scopes(key)}  {_rate(key)}"])
        print_lines(
            [f"    {secret.id}  created {secret.created:%Y-%m-%d}{_end(secret, now)}" for secret in key.secrets]
        )
    if not known:
        print_lines(["no keys"])


def _read_scopes(texts: Sequence[str]) -> "dict[Scope, tuple[str, ...]]":
    """What --scope says: search, write or admin, and the galleries behind a colon."""
    from reidserve.server.guard.keys import ALL, SCOPES

    scopes: dict[Scope, tuple[str, ...]] = {}
    for text in texts:
        word, colon, galleries = text.partition(":")
        scope = next((scope for scope in SCOPES if scope == word), None)
        if scope is None:
            raise UsageError(
                f"--scope: expected {', '.join(SCOPES)}, or such as search:mall,station, got {text[:80]!r}"
            )
        named = tuple(galleries.split(",")) if colon else (ALL,)
        if not all(named):
            raise UsageError(
                f"--scope: expected galleries with commas between them behind the colon, got {text[:80]!r}"
            )
        scopes[scope] = tuple(dict.fromkeys((*scopes.get(scope, ()), *named)))
    return scopes


def _expiry(days: float | None) -> datetime | None:
    if days is None:
        return None
    # Written so that NaN fails.
    if not 0 < days <= MOST_DAYS:
        raise UsageError(f"--days must be above 0 and at most {MOST_DAYS:,}, got {days:g}")
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def _tell_secret(key: "Key", secret: "Secret", token: str, *, json: bool) -> None:
    if json:
        print_json({**_facts(key), "secret": secret.id, "key": token})
        return
    print_facts({"name": key.name, "may": _scopes(key), "rate": _rate(key), "secret": secret.id, "key": token})
    warn_lines(["the key is printed this once: keep it where you keep secrets"])


def _facts(key: "Key") -> dict[str, object]:
    now = datetime.now(UTC)
    return {
        "name": key.name,
        "scopes": key.scopes,
        "images_per_second": key.images_per_second,
        "burst": key.burst,
        "secrets": [
            {"id": secret.id, "created": secret.created, "expires": secret.expires, "active": secret.active(now)}
            for secret in key.secrets
        ],
    }


def _scopes(key: "Key") -> str:
    return " ".join(f"{scope}:{','.join(galleries)}" for scope, galleries in key.scopes.items())


def _rate(key: "Key") -> str:
    if key.images_per_second is None:
        return "any rate"
    burst = "" if key.burst is None else f", {key.burst:g} at once"
    return f"{key.images_per_second:g} images/s{burst}"


def _end(secret: "Secret", now: datetime) -> str:
    if secret.expires is None:
        return ""
    return f", {'expires' if secret.active(now) else 'EXPIRED'} {secret.expires:%Y-%m-%d}"
