"""Every error reidserve raises on purpose: one tree on the ground floor, raised in every room, mapped at every edge.

A class is a kind of failure; its `reason` is the stable word that machines read (on the wire in
`ErrorInfo.reason`, in `--json` output as `error.reason`). The message is for people: what was expected,
what came, what to do.
"""


class ReidError(Exception):
    """The root of the tree; anything else that escapes is a bug."""

    reason = "REID_ERROR"


class UsageError(ReidError):
    """A command was asked for something that does not fit together."""

    reason = "USAGE_WRONG"


class DatasetError(ReidError):
    """A dataset on disk is not what was said of it."""

    reason = "DATASET_INVALID"


class ImageError(ReidError):
    """Bytes that should have been an image cannot be decoded."""

    reason = "IMAGE_INVALID"


class ImageTooLargeError(ImageError):
    """An image has more bytes or pixels than are accepted."""

    reason = "IMAGE_TOO_LARGE"


class ArtifactError(ReidError):
    """An artifact folder is missing, damaged, or does not compute what its contract says."""

    reason = "ARTIFACT_INVALID"


class DeviceError(ReidError):
    """The device that was asked for was not obtained."""

    reason = "DEVICE_UNAVAILABLE"


class EmbeddingError(ReidError):
    """The model gave something for an image that is not an embedding."""

    reason = "EMBEDDING_INVALID"


class CheckpointError(ReidError):
    """A checkpoint is not, to the last tensor, what it is said to be."""

    reason = "CHECKPOINT_INVALID"


class ExportError(ReidError):
    """A model cannot be turned into an artifact."""

    reason = "EXPORT_FAILED"


class ParityError(ExportError):
    """What was made does not rank as its reference does.

    Attributes:
        parity: the Parity that was measured.
    """

    reason = "PARITY_LOST"

    def __init__(self, message: str, *, parity: object) -> None:
        super().__init__(message)
        self.parity = parity


class OutputExistsError(ReidError):
    """What would be written is there already."""

    reason = "OUTPUT_EXISTS"


class GalleryError(ReidError):
    """A gallery is missing, damaged, or cannot be written."""

    reason = "GALLERY_INVALID"


class GalleryModelError(GalleryError):
    """A gallery holds the embeddings of another model."""

    reason = "GALLERY_MODEL_MISMATCH"


class GalleryLockedError(GalleryError):
    """Another process is writing to the gallery."""

    reason = "GALLERY_LOCKED"


class GalleryFullError(GalleryError):
    """More entries than the memory that was allowed has room for."""

    reason = "GALLERY_FULL"


class GalleryBehindError(GalleryError):
    """A generation that was waited for has not been read in time."""

    reason = "GALLERY_BEHIND"


class EntryError(ReidError):
    """An entry that should be written is not a valid one."""

    reason = "ENTRY_INVALID"


class QueryError(ReidError):
    """A query cannot be answered as it was asked."""

    reason = "QUERY_INVALID"


class EntryNotFoundError(QueryError):
    """The gallery holds no entry of that id."""

    reason = "ENTRY_NOT_FOUND"


class GalleryNotFoundError(QueryError):
    """The server has no gallery of that name."""

    reason = "GALLERY_NOT_FOUND"


class IncompleteRankingError(QueryError):
    """The whole gallery should be ranked, and its index answers the best hits only."""

    reason = "RANKING_INCOMPLETE"


class GenerationGoneError(QueryError):
    """A state of the gallery was asked for by its generation, and is served no more."""

    reason = "GENERATION_GONE"


class ThresholdError(ReidError):
    """A calibrated threshold is damaged, or is another model's."""

    reason = "THRESHOLD_INVALID"


class EvaluationError(ReidError):
    """A model cannot be scored on these images."""

    reason = "EVALUATION_IMPOSSIBLE"


class ServerError(ReidError):
    """The server cannot start, or cannot take a request now."""

    reason = "SERVER_FAILED"


class OverloadedError(ServerError):
    """More images are under way than the server admits."""

    reason = "OVERLOADED"


class NotServingError(ServerError):
    """The server is still loading, or is draining."""

    reason = "NOT_SERVING"


class ReaderStalledError(ServerError):
    """A caller does not read what it asked for."""

    reason = "READER_STALLED"


class RequestError(ReidError):
    """A server refused a request, or could not be reached.

    Attributes:
        code: the name of the gRPC status.
        reason: the server's own word.
    """

    def __init__(self, message: str, *, code: str, reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
