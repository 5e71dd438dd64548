"""The artifact: a folder with a contract, a graph and canaries, read strictly."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from reidserve.embed.canaries import CANARIES_FILE, Canaries, decode_canaries
from reidserve.embed.contract import Contract, decode_contract
from reidserve.errors import ArtifactError

CONTRACT_FILE = "artifact.json"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model folder whose every file is the one that its contract names.

    Attributes:
        folder: where it lies.
        contract: what it promises.
        canaries: how to see that it holds here.
    """

    folder: Path
    contract: Contract
    canaries: Canaries


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact and check the sha256 of each of its files.

    Raises:
        ArtifactError: no artifact, a contract that does not read, or a file that is missing or was changed.
    """
    path = folder / CONTRACT_FILE
    if not path.is_file():
        raise ArtifactError(f"no model at {folder}: expected {path}; make one with reid-export --out {folder}")
    contract = decode_contract(_read(path))
    canaries = None
    for name, expected in contract.files.items():
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise ArtifactError(f"{path} names a file outside its folder: {name!r}")
        data = _read(folder / name)
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise ArtifactError(
                f"{folder / name} was changed after export: expected sha256 {expected[:12]}, got {found[:12]}"
            )
        if name == CANARIES_FILE:
            canaries = decode_canaries(data)
    if canaries is None:
        raise ArtifactError(f"{path} must name {CANARIES_FILE}, got {sorted(contract.files)}")
    return Artifact(folder, contract, canaries)


def decode_artifact(contract: bytes, canaries: bytes) -> tuple[Contract, Canaries]:
    """Read a contract and the canaries that it names, as they were sent.

    Raises:
        ArtifactError: one of them does not read, or they are not of one artifact.
    """
    decoded = decode_contract(contract)
    expected, found = decoded.files.get(CANARIES_FILE), hashlib.sha256(canaries).hexdigest()
    if found != expected:
        raise ArtifactError(f"the canaries are not the contract's: expected sha256 {expected}, got {found}")
    return decoded, decode_canaries(canaries)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
