"""What is said of entries on the command line: labels, attributes, and which entries are meant."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from reidserve.datasets import Attribute

Pid = Annotated[str | None, Parameter(show_default=False, help="The identity: a person or a vehicle.")]
Camid = Annotated[str | None, Parameter(show_default=False, help="The camera.")]
Timestamp = Annotated[
    str | None,
    Parameter(
        show_default=False,
        help="When it was taken: ISO 8601 with a time zone (2024-05-01T08:00:00Z), or microseconds since 1970 UTC.",
    ),
]
Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        show_default=False,
        help="An attribute as NAME=VALUE, such as colour=red; 7 is a number, true a boolean, '\"7\"' text. May be "
        "given several times.",
    ),
]


def read_moment(text: str | None) -> int | None:
    """The microseconds since 1970 UTC that --timestamp names.

    Raises:
        UsageError: it is no moment.
    """
    from reidserve.datasets import read_timestamp

    if text is None:
        return None
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    try:
        return read_timestamp(text)
    except DatasetError as error:
        raise UsageError(f"--timestamp: {error}") from error


def read_attributes(pairs: Sequence[str] | None) -> "Mapping[str, Attribute]":
    """The attributes that --set names.

    Raises:
        UsageError: one is no NAME=VALUE, comes twice, or cannot be kept.
    """
    from reidserve.datasets import read_attribute, wrong_attributes

    attributes: dict[str, Attribute] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set: expected NAME=VALUE, got {pair!r}")
        if name in attributes:
            raise UsageError(f"--set: {name} comes twice")
        attributes[name] = read_attribute(value)
    if wrong := wrong_attributes(attributes):
        raise UsageError(f"--set: {wrong}")
    return attributes


def check_chosen(ids: Sequence[str], where: str | None) -> None:
    """See that it is said which entries are meant, by ids or by a filter.

    Raises:
        UsageError: neither or both.
    """
    if bool(ids) == (where is not None):
        raise UsageError("expected ids of entries or --where FILTER, one of both")
