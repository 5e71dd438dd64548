"""A model's place: a folder here, or a name at another server."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from reidserve.errors import UsageError

CONTRACT_KEY, CANARIES_KEY, PRECISION_KEY = "reidserve.contract", "reidserve.canaries", "reidserve.precision"
"""Under which a model's configuration, at a server that tells it, holds the contract, the canaries and the precision of
its graph."""

_SCHEME = "triton"


@dataclass(frozen=True, slots=True)
class ModelUrl:
    """A model that another server computes, over the Open Inference Protocol v2.

    Attributes:
        address: host:port of that server's gRPC.
        name: what the model is called there.
        contract: the folder of its artifact; None where the model's configuration there holds the contract.
    """

    address: str
    name: str
    contract: Path | None = None

    def __str__(self) -> str:
        beside = "" if self.contract is None else f"?contract={quote(str(self.contract))}"
        return f"{_SCHEME}://{self.address}/{quote(self.name)}{beside}"


ModelPlace = Path | ModelUrl
"""An artifact's folder, or a model at another server."""


def parse_model(text: str) -> ModelPlace:
    """The place that a text names: a folder, or triton://host:8001/name, with ?contract=FOLDER where that is needed.

    Raises:
        UsageError: it begins as a URL and is none of a model.
    """
    scheme, mark, _ = text.partition("://")
    if not mark:
        return Path(text)
    try:
        parts = urlsplit(text)
        port = parts.port
        beside = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    except ValueError:
        port, beside, parts = None, {}, urlsplit("")
    name = unquote(parts.path.removeprefix("/"))
    whole = scheme == _SCHEME and parts.hostname and port and name and "/" not in name
    if not whole or "@" in parts.netloc or parts.fragment or set(beside) - {"contract"} or "" in beside.values():
        raise UsageError(
            f"expected a model's folder or {_SCHEME}://host:8001/name, with ?contract=FOLDER where the server does not "
            f"tell the contract, got {text!r}"
        )
    return ModelUrl(parts.netloc, name, Path(beside["contract"]) if beside else None)
