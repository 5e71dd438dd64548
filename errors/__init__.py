"""Every error reidserve raises on purpose: one tree on the ground floor, raised in every room, mapped at every edge.

A class is a kind of failure; its `reason` is the stable word that machines read (on the wire in
`ErrorInfo.reason`, in `--json` output as `error.reason`). The message is for people: what was expected,
what came, what to do.
"""


class ReidError(Exception):
    """The root of the tree; anything else that escapes is a bug.

    Attributes:
        retry_after: seconds after which asking again may help; None where nobody can say.
    """

    reason = "REID_ERROR"
    retry_after: float | None = None


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


class ClusterError(ReidError):
    """Machines that should work together are not reached, or are not what they must be."""

    reason = "CLUSTER_UNAVAILABLE"


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


class RemainsError(GalleryError):
    """What was removed from a gallery is found no more, and bytes of it are left in its files."""

    reason = "REMAINS_LEFT"


class RetentionError(GalleryError):
    """More of a gallery has grown too old at once than is removed without being told twice."""

    reason = "RETENTION_REFUSED"


class EntryError(ReidError):
    """An entry that should be written is not a valid one."""

    reason = "ENTRY_INVALID"


class QueryError(ReidError):
    """A query cannot be answered as it was asked."""

    reason = "QUERY_INVALID"


class EntryNotFoundError(QueryError):
    """The gallery holds no entry of that id."""

    reason = "ENTRY_NOT_FOUND"


class ThumbnailNotFoundError(QueryError):
    """An entry has no thumbnail."""

    reason = "THUMBNAIL_NOT_FOUND"


class GalleryNotFoundError(QueryError):
    """The server has no gallery of that name."""

    reason = "GALLERY_NOT_FOUND"


class NoThresholdError(QueryError):
    """Matches were asked for, and nobody calibrated the model's threshold."""

    reason = "THRESHOLD_MISSING"


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
    """More images are under way than the server admits.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    reason = "OVERLOADED"
    retry_after: float

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotServingError(ServerError):
    """The server is still loading, or is draining."""

    reason = "NOT_SERVING"


class RateLimitedError(OverloadedError):
    """A caller asks more often than its key may."""

    reason = "RATE_LIMITED"


class BackendUnavailableError(ServerError):
    """Another server that this one needs, of the gallery or of the model, is away or does not answer in time.

    Attributes:
        retry_after: seconds after which it may be back.
    """

    reason = "BACKEND_UNAVAILABLE"
    retry_after: float

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(ServerError):
    """A call cannot be answered, or was not, before its deadline."""

    reason = "DEADLINE_EXCEEDED"


class EngineStuckError(ServerError):
    """The model has been computing one batch for longer than any should take."""

    reason = "ENGINE_STUCK"


class ReadOnlyError(ServerError):
    """A write was asked of a server, or of a gallery, that is only read."""

    reason = "READ_ONLY"


class ReceiptError(ServerError):
    """A request id was used before, for another request."""

    reason = "REQUEST_ID_REUSED"


class ReloadError(ServerError):
    """Another model cannot be put in the place of the one that serves, which goes on."""

    reason = "RELOAD_REFUSED"


class ConfigError(ServerError):
    """What the server was told to be does not fit together."""

    reason = "CONFIG_INVALID"


class UnauthenticatedError(ServerError):
    """A call carries no key that is known here."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(ServerError):
    """The caller's key does not allow what it asks for."""

    reason = "PERMISSION_DENIED"


class MessageError(ServerError):
    """What a caller sent is no message of reid.v1."""

    reason = "REQUEST_INVALID"


class ContentTypeError(MessageError):
    """A request's body is of a kind that is not read here."""

    reason = "CONTENT_TYPE_UNKNOWN"


class MessageTooLargeError(MessageError):
    """A message has more bytes than are accepted."""

    reason = "MESSAGE_TOO_LARGE"


class MessageStalledError(MessageError):
    """A caller does not send on what it began to send."""

    reason = "MESSAGE_STALLED"


class MetadataError(ServerError):
    """A call comes with more metadata than is accepted."""

    reason = "METADATA_TOO_LARGE"


class ReaderStalledError(ServerError):
    """A caller does not read what it asked for."""

    reason = "READER_STALLED"


class RequestError(ReidError):
    """A server did not answer a request; a failure of none of the kinds below is the server's own.

    Attributes:
        code: the name of the gRPC status.
        reason: the server's own word; the code where it said none.
        request_id: names the call in the server's logs; empty where the server did not say it.
        retry_after: seconds after which the server says that asking again may help; None where it does not.
    """

    def __init__(
        self, message: str, *, code: str, reason: str, request_id: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.request_id = request_id
        self.retry_after = retry_after


class RefusedError(RequestError):
    """Asked like this the server will not do it: ask something else."""


class NotFoundError(RefusedError):
    """There is no such entry or gallery."""


class AccessError(RefusedError):
    """The key is missing, unknown, or does not allow it: take another one."""


class BusyError(RequestError):
    """The server has too much to do, or the key is used too often: ask again after `retry_after`."""


class UnavailableError(RequestError):
    """The server cannot be reached, is loading, draining or stuck: ask again later, or another server."""


class TimedOutError(RequestError):
    """There was no answer in time; what should have been written may have been."""
