"""The record: parity.json, what the gate measured of every engine, each figure with what it was measured on."""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from reidserve.embed import Artifact
from reidserve.embed.contract import PARITY_FILE
from reidserve.errors import ArtifactError
from reidserve.export.parity import Parity, Row

Record = tuple[Parity, ...]
"""Measurements on different crops, or against different references, stand beside each other."""


def read_record(artifact: Artifact) -> Record:
    """What was measured of an artifact so far.

    Raises:
        ArtifactError: parity.json does not read.
    """
    if PARITY_FILE not in artifact.contract.files:
        return ()
    return decode_record((artifact.folder / PARITY_FILE).read_bytes())


def decode_record(data: bytes) -> Record:
    """Read parity.json strictly.

    Raises:
        ArtifactError: it is no record.
    """
    try:
        return msgspec.json.decode(data, type=Record)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{PARITY_FILE} does not read: {error}") from error


def encode_record(record: Record) -> bytes | None:
    """The record as indented JSON with sorted keys; None where nothing was measured."""
    if not record:
        return None
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def updated(record: Record, measured: Parity | None, *, anew: Callable[[str], bool] = lambda engine: False) -> Record:
    """The record with what was measured now, less older figures of the same engines and of graphs that are made `anew`.

    What was measured on the same crops, against the same reference, stands in one table.
    """
    fresh = () if measured is None else _candidates(measured)
    gone = {row.engine for row in fresh}
    kept = []
    for parity in record:
        rows = tuple(row for row in _candidates(parity) if row.engine not in gone and not anew(row.engine))
        if measured is not None and _ground(parity) == _ground(measured):
            measured = replace(measured, rows=(measured.rows[0], *rows, *fresh))
        elif rows:
            kept.append(replace(parity, rows=(parity.rows[0], *rows)))
    return (*kept, *([] if measured is None else [measured]))


def _candidates(parity: Parity) -> tuple[Row, ...]:
    """All rows but the reference's, which is the first."""
    return parity.rows[1:]


def _ground(parity: Parity) -> Parity:
    """What figures must share to stand in one table: all but the candidates' rows."""
    return replace(parity, rows=parity.rows[:1])
