"""Filters as every command takes them."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.errors import QueryError, UsageError

if TYPE_CHECKING:
    from reidserve.index import Filter

Where = Annotated[
    str | None,
    Parameter(
        show_default=False,
        help="Only entries that this filter accepts, such as 'camid != c2 and timestamp >= 2024-05-01T08:00:00Z and "
        "colour in (red, blue)'.",
    ),
]


def read_where(text: str | None) -> "Filter | None":
    """The filter that --where asks for.

    Raises:
        UsageError: it is wrong.
    """
    if text is None:
        return None
    from reidserve.index import parse_filter

    try:
        return parse_filter(text)
    except QueryError as error:
        raise UsageError(f"--where: {error}") from error
