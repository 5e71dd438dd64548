"""The embedder: an artifact on an engine, from encoded bytes to unit embeddings."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reidserve.embed.artifact import Artifact, read_artifact
from reidserve.embed.canaries import FOREIGN_BOUNDS, REFERENCE_ENGINE, Canaries, compare_canaries
from reidserve.embed.contract import Contract, Precision
from reidserve.embed.engines import Device, is_unverified, start_session
from reidserve.embed.images import Batch, Image, decode, resize
from reidserve.embed.place import ModelPlace, ModelUrl
from reidserve.embed.session import Session
from reidserve.embed.watched_session import WatchedSession
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError, ImageError

Embeddings = NDArray[np.float32]
"""(N, dim), C-contiguous, rows of unit length."""

Embedding = NDArray[np.float32]
"""(dim,), of unit length."""

UNIT_TOLERANCE = 1e-4

AHEAD = 256
"""Images that are prepared in front of those that are embedded: some seconds' worth on a CPU."""

_FILTER_DISTANCE = 4e-2
"""The least that another resize filter moves the furthest canary."""

_logger = logging.getLogger(__name__)


class Embedder:
    """A contract and a session that fulfils it.

    Attributes:
        contract: what is promised.
        engine: what computes it, such as "fp32/onnxruntime-cpu".
        unverified: whether the rank-parity gate has not let through what this engine computes.
        max_batch: the largest batch that is worth giving the engine, to all its lanes together.
        lanes: how many batches the engine computes side by side.
        ahead: how many images are worth preparing in front of those that are embedded.
    """

    def __init__(self, contract: Contract, session: Session) -> None:
        self.contract = contract
        self.engine = session.engine
        self.unverified = is_unverified(contract, session.engine)
        self.max_batch = session.max_batch
        self.lanes = session.lanes
        self.ahead = AHEAD
        self._session = session

    @property
    def away(self) -> bool:
        """Whether another machine computes, and is of no use now."""
        return isinstance(self._session, WatchedSession) and self._session.away

    def prepare(self, data: bytes) -> Image:
        """Encoded bytes to one (height, width, 3) uint8 row of a Batch.

        Raises:
            ImageError: the bytes are no image that is accepted.
        """
        contract = self.contract
        return resize(decode(data), height=contract.height, width=contract.width, resize_filter=contract.resize)

    def embed(self, batch: Batch) -> Embeddings:
        """A Batch (N, height, width, 3) to Embeddings (N, dim), whatever N.

        Raises:
            EmbeddingError: the batch has another shape, or the model gave NaN or a vector that is not of unit length.
            BackendUnavailableError: another machine computes, and is away or late.
        """
        expected = (self.contract.height, self.contract.width, 3)
        if batch.dtype != np.uint8 or batch.shape[1:] != expected:
            raise EmbeddingError(
                f"expected a uint8 batch of (N, {', '.join(map(str, expected))}), got {batch.dtype} {batch.shape}"
            )
        rows = np.empty((len(batch), self.contract.dim), np.float32)
        for start in range(0, len(batch), self.max_batch):
            part = self._session(batch[start : start + self.max_batch])
            if part.shape[1:] != rows.shape[1:]:
                raise EmbeddingError(f"the contract promises {self.contract.dim} dimensions, got {part.shape}")
            rows[start : start + self.max_batch] = part
        _check_unit(rows)
        return rows

    def embed_each(self, images: Batch | Sequence[Image]) -> list[Embedding | EmbeddingError]:
        """Per image of a Batch its embedding (dim,), or what was wrong with it: no image costs another its answer."""
        batch = np.asarray(images)
        try:
            return list(self.embed(batch))
        except EmbeddingError as error:
            if len(batch) == 1:
                return [error]
        return [answer for row in range(len(batch)) for answer in self.embed_each(batch[row : row + 1])]

    def embed_encoded(self, images: Sequence[bytes]) -> Embeddings:
        """Encoded images to Embeddings (N, dim).

        Raises:
            ImageError: one of them is no image that is accepted.
            EmbeddingError: the model gave NaN or a vector that is not of unit length.
        """
        return self.embed(np.stack([self.prepare(data) for data in images]))


def off_unit(rows: Embeddings) -> list[tuple[int, float]]:
    """Which of rows (N, dim) are not of unit length: the place and the length of each."""
    with np.errstate(all="ignore"):  # a caller's numbers may overflow
        lengths = np.sqrt(np.vecdot(rows, rows))
        # Written so that NaN fails.
        places = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))
    return list(zip(places.tolist(), lengths[places].tolist(), strict=True))


def _check_unit(rows: Embeddings) -> None:
    if bad := off_unit(rows):
        place, length = bad[0]
        raise EmbeddingError(
            f"the model gave no unit vector for {len(bad)} of {len(rows)} images (first: image {place}, "
            f"length {length:g})"
        )


def open_embedder(
    place: ModelPlace, *, precision: Precision = "fp32", device: Device = "cpu", threads: int | None = None
) -> Embedder:
    """Read the artifact in a folder, start an engine, and see that the canaries hold; or connect to one elsewhere.

    On a CPU the engine takes so many `threads`, or all cores of the process.

    Raises:
        ArtifactError: the folder is no whole artifact, has no such flavour, or computes something else here.
        DeviceError: the device was not obtained.
        BackendUnavailableError: the model is at another server, which is away.
    """
    if isinstance(place, ModelUrl):
        return _connect(place, precision, device)
    artifact = read_artifact(place)
    session = start_session(artifact, precision=precision, device=device, threads=threads)
    if session.engine != REFERENCE_ENGINE:
        _check_reference(artifact, threads)
    embedder = Embedder(artifact.contract, session)
    _check_canaries(artifact.canaries, embedder)
    return embedder


def _connect(url: ModelUrl, precision: Precision, device: Device) -> Embedder:
    """A model at another server, held to the canaries whenever that server comes to be asked."""
    from reidserve.embed.remote_session import RemoteModel, RemoteSession

    if device != "cpu":
        raise DeviceError(f"{url} runs where it is: --device {device} is of a model's folder")
    remote = RemoteModel(url)
    if url.contract is not None:
        artifact = read_artifact(url.contract)
        contract, canaries = artifact.contract, artifact.canaries
        _check_reference(artifact, None)
    else:
        contract, canaries = remote.read_artifact(precision)
        if FOREIGN_BOUNDS[precision] > _FILTER_DISTANCE:
            raise ArtifactError(
                f"{precision} canaries of another machine would not show that images are resized otherwise here: name "
                f"the artifact's folder too, '{url}?contract=FOLDER'"
            )

    def start() -> RemoteSession:
        session = remote.start(contract, precision)
        _check_canaries(canaries, Embedder(contract, session))
        return session

    return Embedder(contract, WatchedSession(start))


def _check_reference(artifact: Artifact, threads: int | None) -> None:
    """Whatever engine follows: decoding and resizing are the same, and show here within the narrowest bound."""
    _check_canaries(artifact.canaries, Embedder(artifact.contract, start_session(artifact, threads=threads)))


def _check_canaries(canaries: Canaries, embedder: Embedder) -> None:
    try:
        embeddings = embedder.embed_encoded(canaries.images)
    except (ImageError, EmbeddingError) as error:
        raise ArtifactError(f"the canaries do not embed on {embedder.engine}: {error}") from error
    difference = compare_canaries(canaries, embeddings, engine=embedder.engine)
    if embedder.engine not in canaries.embeddings:
        _logger.warning(
            "the model has no canaries of %s; they lie within %.2g of ONNX Runtime's on the CPU",
            embedder.engine,
            difference,
        )
