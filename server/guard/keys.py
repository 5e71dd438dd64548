"""Keys: what each may do, and of its secrets only their hashes."""

import hashlib
import hmac
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

import msgspec

from reidserve.errors import ConfigError
from reidserve.server.call import ANYONE, Caller, Scope

ALL = "*"
"""Stands for all galleries."""

SCOPES: Sequence[Scope] = get_args(Scope)

MOST_SECRETS = 2
"""Active at once: the one in use, and the one that takes its place."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN = re.compile(r"reid_([0-9a-f]{12})_([0-9a-f]{64})")

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{2})+\Z")]


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller proves itself by, as it is kept.

    A secret is 256 random bits, so there is nothing to guess from its hash, and one SHA-256 keeps it. bcrypt and its
    like make guessing weak passwords slow; here they would only make every call slow, known or not.

    Attributes:
        id: the part of it that is no secret, 12 hexadecimal digits.
        salt: hexadecimal.
        sha256: of the salt and the secret's 64 digits, hexadecimal.
        created: when.
        expires: from when on it is worth nothing; None for never.
    """

    id: _Hex
    salt: _Hex
    sha256: _Hex
    created: _Moment
    expires: _Moment | None = None

    def active(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires is None or now < self.expires

    def fits(self, presented: str) -> bool:
        """Whether this is the secret, in a time that does not depend on how much of it is right."""
        return hmac.compare_digest(_hash(self.salt, presented), self.sha256)


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller that is known.

    Attributes:
        name: for people, in logs and the audit log.
        scopes: by what it may do, the galleries in which it may; ("*",) for all of them.
        images_per_second: how many it may send in the long run; None for as many as it likes.
        burst: how many at once after a pause; None for those of one second.
        secrets: any of them proves it.

    Raises:
        ConfigError: a name that cannot be, a scope without galleries, none at all, or a rate that is no rate.
    """

    name: str
    scopes: Mapping[Scope, tuple[str, ...]]
    images_per_second: float | None = None
    burst: float | None = None
    secrets: tuple[Secret, ...]

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None or self.name == ANYONE.name:
            raise ConfigError(
                "a key's name must be 1 to 64 ASCII letters, digits, dots, underscores and hyphens, and not "
                f"{ANYONE.name!r}, got {self.name[:80]!r}"
            )
        if not self.scopes:
            raise ConfigError(f"key {self.name!r} allows nothing: give it a scope")
        for scope, galleries in self.scopes.items():
            if not galleries or not all(galleries):
                raise ConfigError(f"key {self.name!r} must name galleries for scope {scope}, or {ALL!r} for all")
        for field in ("images_per_second", "burst"):
            value = getattr(self, field)
            # Written so that NaN fails.
            if value is not None and not 0 < value <= 1e9:
                raise ConfigError(f"key {self.name!r}: {field} must be above 0 and at most 1e9, got {value}")

    def caller(self) -> Caller:
        """Who comes with this key."""
        return Caller(
            self.name,
            {scope: None if ALL in galleries else frozenset(galleries) for scope, galleries in self.scopes.items()},
        )


class Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All keys of a server.

    Attributes:
        format: version of this structure.
        keys: in the order in which they were added.

    Raises:
        ConfigError: two have one name, or two secrets one id.
    """

    format: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        _check_once("key is named", [key.name for key in self.keys])
        _check_once("secret has the id", [secret.id for key in self.keys for secret in key.secrets])

    def named(self, name: str) -> Key:
        """The key of this name.

        Raises:
            ConfigError: there is none.
        """
        for key in self.keys:
            if key.name == name:
                return key
        raise ConfigError(
            f"there is no key {name[:80]!r}: there are {', '.join(key.name for key in self.keys) or 'none'}"
        )


def make_secret(*, expires: datetime | None = None) -> tuple[Secret, str]:
    """A new secret as it is kept, and as its owner presents it: told now and never again."""
    number, secret, salt = secrets.token_hex(6), secrets.token_hex(32), secrets.token_hex(16)
    created = datetime.now(UTC).replace(microsecond=0)
    kept = Secret(id=number, salt=salt, sha256=_hash(salt, secret), created=created, expires=expires)
    return kept, f"reid_{number}_{secret}"


def read_token(text: str) -> tuple[str, str] | None:
    """The id and the secret of what a caller presents; None where it cannot be a key's."""
    found = _TOKEN.fullmatch(text)
    return None if found is None else (found[1], found[2])


def redact(text: str) -> str:
    """A text in which of every key only its id is left."""
    return _TOKEN.sub(r"reid_\1_(secret)", text)


def add_key(keys: Keys, key: Key) -> Keys:
    """These keys and one more.

    Raises:
        ConfigError: its name is taken.
    """
    if any(known.name == key.name for known in keys.keys):
        raise ConfigError(f"there is a key {key.name!r} already: rotate it, revoke it, or take another name")
    return Keys(keys=(*keys.keys, key))


def rotate_key(keys: Keys, name: str, secret: Secret) -> Keys:
    """A key gets another secret; the one in use lives on until it is revoked, and those that expired go.

    Raises:
        ConfigError: there is no such key, or it has two active secrets already.
    """
    key = keys.named(name)
    active = tuple(known for known in key.secrets if known.active(secret.created))
    if len(active) >= MOST_SECRETS:
        raise ConfigError(
            f"key {name!r} has {MOST_SECRETS} active secrets already, {' and '.join(known.id for known in active)}: "
            "revoke the one that is no longer used"
        )
    return _replace(keys, msgspec.structs.replace(key, secrets=(*active, secret)))


def revoke_key(keys: Keys, name: str, secret_id: str | None = None) -> Keys:
    """A key goes, or one of its secrets; with its last secret it goes too.

    Raises:
        ConfigError: there is no such key or secret.
    """
    key = keys.named(name)
    left = tuple(secret for secret in key.secrets if secret_id is not None and secret.id != secret_id)
    if secret_id is not None and len(left) == len(key.secrets):
        raise ConfigError(
            f"key {name!r} has no secret {secret_id[:80]!r}: it has {', '.join(secret.id for secret in key.secrets)}"
        )
    if left:
        return _replace(keys, msgspec.structs.replace(key, secrets=left))
    return Keys(keys=tuple(known for known in keys.keys if known.name != name))


def _replace(keys: Keys, key: Key) -> Keys:
    return Keys(keys=tuple(key if known.name == key.name else known for known in keys.keys))


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()


def _check_once(what: str, values: list[str]) -> None:
    value, count = max(Counter(values).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ConfigError(f"more than one {what} {value!r}")
