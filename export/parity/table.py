"""The table of a gate, for people."""

from collections.abc import Sequence

from reidserve.export.parity.record import Parity, Row

_HEAD = (
    *("engine", "gallery", "cosine min", "mean", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"),
    *("top-1", "top-10", "change", "95 % interval", "verdict"),
)
_TEXTS = ("engine", "gallery", "verdict")
_NAMED = 3


def table_lines(parity: Parity) -> list[str]:
    """The rows side by side, what they are of, and why some are refused; changes are in points of mAP."""
    cells = [_HEAD, *(_cells(parity, row) for row in parity.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(_justified, _HEAD, row, widths)).rstrip() for row in cells]
    return [*lines, "", *_notes(parity), *(f"Refused: {reason}." for reason in parity.refusals())]


def _cells(parity: Parity, row: Row) -> Sequence[str]:
    is_reference = row.engine == parity.reference
    interval = "-" if row.low is None or row.high is None else f"{row.low:+.3f} to {row.high:+.3f}"
    return (
        row.engine,
        "the reference's" if row.mixed else "its own",
        *(f"{cosine:.6f}" for cosine in (row.cosine_min, row.cosine_mean)),
        *(_share(share) for share in (row.rank1, row.rank5, row.rank10, row.mAP, row.mINP, row.top1, row.top10)),
        "-" if row.change is None else f"{row.change:+.3f}",
        interval,
        "reference" if is_reference else "passed" if row.refused is None else "REFUSED",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _justified(head: str, cell: str, width: int) -> str:
    return cell.ljust(width) if head in _TEXTS else cell.rjust(width)


def _notes(parity: Parity) -> list[str]:
    if parity.labelled:
        said = [
            f"{parity.queries} queries of {parity.identities} identities in a gallery of {parity.gallery}; identities "
            f"were drawn {parity.samples} times, seed {parity.seed}. Changes are in points of mAP."
        ]
    else:
        said = [
            f"No query has a pid: rankings alone were compared, of {parity.queries} queries in a gallery of "
            f"{parity.gallery}. Whether points of mAP are lost is not known."
        ]
    if parity.left_out:
        more = len(parity.left_out) - _NAMED
        names = ", ".join(parity.left_out[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        said.append(f"{len(parity.left_out)} images could not be read and were left out: {names}.")
    return said
