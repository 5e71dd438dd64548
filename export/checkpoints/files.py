"""A file's bytes become named tensors: safetensors, or torch's own format without ever running what it holds."""

import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from reidserve.errors import CheckpointError

_HEADER_LENGTH = 8
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
AVERAGED = "n_averaged"
"""What torch's AveragedModel puts beside the tensors."""
_NUMBERS = ("f2", "f4", "f8", "i4", "i8")
"""NumPy's types of scalars that stand beside weights, by its own names."""
_REFUSED = re.compile(r"GLOBAL (\S+)")
"""Where torch's message names what a file wanted to import."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file of weights holds.

    Attributes:
        path: the file.
        sha256: of its bytes.
        tensors: by name, without what wrappers put before the names.
        metadata: of a safetensors file; of torch's, the numbers and texts that a wrapper holds beside the tensors.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_contents(path: Path) -> Contents:
    """Read a file of weights; code in it does not run.

    Raises:
        CheckpointError: it is missing, damaged, or holds more than tensors and numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise CheckpointError(f"{path} is empty")
    if data[_HEADER_LENGTH : _HEADER_LENGTH + 1] == b"{":
        tensors, metadata = _read_safetensors(path, data)
    else:
        tensors, metadata = _unwrap(path, _read_pickle(path, data))
    return Contents(path, hashlib.sha256(data).hexdigest(), _without_prefixes(tensors), metadata)


def _read_safetensors(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = safetensors.torch.load(data)
        # The library gives metadata of a file's name only; its own reader has just accepted this header.
        length = int.from_bytes(data[:_HEADER_LENGTH], "little")
        header = json.loads(data[_HEADER_LENGTH : _HEADER_LENGTH + length])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file (was it cut off?): {error}") from error
    return dict(sorted(tensors.items())), header.get("__metadata__", {})


def _read_pickle(path: Path, data: bytes) -> object:
    # torch remarks on old formats and on ones it then refuses.
    with _numpy_scalars_by_name(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = _REFUSED.search(str(error))
            if found is None:
                raise CheckpointError(f"{path} is no whole checkpoint of torch: {_first_line(error)}") from error
            raise CheckpointError(
                f"{path} holds more than tensors: it wants {found[1]}, which could run code, so nothing of it was "
                "loaded. If it is a whole model (torch.save(model, ...)), save its tensors alone, where the model's "
                "code is: torch.save(model.state_dict(), path)"
            ) from error
        except Exception as error:
            raise CheckpointError(
                f"{path} is no whole checkpoint of torch or safetensors (was it cut off?): "
                f"{type(error).__name__} {_first_line(error)}"
            ) from error


def _first_line(error: Exception) -> str:
    # What torch says before this tells how to load the file without the protection.
    message = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return message.partition("\n")[0][:200] or type(error).__name__


class _NumpyType:
    """Stands in for NumPy's dtype while a file is read: keeps its name, takes whatever else it is given."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        pass


class _NumpyScalar:
    """Stands in for a scalar of NumPy while a file is read: keeps its type and bytes."""

    def __init__(self, kind: object = None, data: object = None, *_: object) -> None:
        self.kind = kind
        self.data = data

    def __setstate__(self, _: object) -> None:
        pass

    def __str__(self) -> str:
        """The number it stands for; nothing where it is none of _NUMBERS."""
        name = self.kind.name if isinstance(self.kind, _NumpyType) else None
        if not isinstance(name, str) or name not in _NUMBERS or not isinstance(self.data, bytes):
            return ""
        kind = np.dtype(f"<{name}")
        return str(np.frombuffer(self.data, kind)[0]) if len(self.data) == kind.itemsize else ""


_PLAIN = (bool, int, float, str, _NumpyScalar)


@contextmanager
def _numpy_scalars_by_name() -> Iterator[None]:
    # torchreid keeps its Rank-1 as a NumPy scalar beside the weights, and weights_only refuses that. The names are
    # let through, NumPy itself is not: its own constructors were not written for bytes from strangers.
    names = {
        "numpy.dtype": _NumpyType,
        "numpy.core.multiarray.scalar": _NumpyScalar,
        "numpy._core.multiarray.scalar": _NumpyScalar,
    }
    with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in names.items()]):
        yield


def _unwrap(path: Path, loaded: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, and what is said beside them."""
    said: dict[str, str] = {}
    for _ in _WRAPPERS:
        inner = next((name for name in _WRAPPERS if isinstance(loaded, Mapping) and name in loaded), None)
        if isinstance(loaded, Mapping) and inner is not None and isinstance(loaded[inner], Mapping):
            plain = {str(name): str(value) for name, value in loaded.items() if isinstance(value, _PLAIN)}
            said |= {name: text for name, text in plain.items() if text}
            loaded = loaded[inner]
    return _tensors_of(path, loaded), said


def _tensors_of(path: Path, loaded: object) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(
            f"{path} holds {type(loaded).__name__}, a state dict with tensors was expected: "
            "torch.save(model.state_dict(), path)"
        )
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path} is no state dict, nor has it one under {' or '.join(_WRAPPERS)}: these are no tensors: "
            f"{name_some(others)}"
        )
    odd = [
        str(name) for name, value in loaded.items() if value.is_meta or value.is_nested or value.layout != torch.strided
    ]
    if odd:
        raise CheckpointError(f"{path} holds tensors that are sparse, nested or have no values: {name_some(odd)}")
    return {str(name): value for name, value in loaded.items()}


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    averaged = {name: value for name, value in tensors.items() if name == AVERAGED}
    rest = {name: value for name, value in tensors.items() if name != AVERAGED}
    while prefix := next((start for start in _PREFIXES if rest and all(name.startswith(start) for name in rest)), None):
        rest = {name.removeprefix(prefix): value for name, value in rest.items()}
    return rest | averaged


def name_some(names: list[str], *, most: int = 8) -> str:
    """The names, or the first of them and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
