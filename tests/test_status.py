"""Every error of the tree has a status, a reason, and nothing of the server's own in it."""

import re
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from reidserve import errors
from reidserve.server.http.status import refuse
from reidserve.server.wire.status import AWAY, DETAILS_KEY, LONGEST_MESSAGE, abort, refusal_of, status_of

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
EXPECTED: dict[str, set[type[errors.ReidError]]] = {
    "UNAUTHENTICATED": {errors.UnauthenticatedError},
    "PERMISSION_DENIED": {errors.PermissionDeniedError},
    "NOT_FOUND": {errors.EntryNotFoundError, errors.GalleryNotFoundError, errors.ThumbnailNotFoundError},
    "ALREADY_EXISTS": {errors.OutputExistsError},
    "INVALID_ARGUMENT": {
        *(errors.QueryError, errors.EntryError, errors.ImageError, errors.ImageTooLargeError, errors.MetadataError),
    },
    "FAILED_PRECONDITION": {
        *(errors.GenerationGoneError, errors.IncompleteRankingError, errors.NoThresholdError),
        *(errors.ReadOnlyError, errors.ReceiptError, errors.ReloadError),
    },
    "RESOURCE_EXHAUSTED": {errors.OverloadedError, errors.RateLimitedError, errors.GalleryFullError},
    "DEADLINE_EXCEEDED": {errors.DeadlineError, errors.ReaderStalledError},
    "UNAVAILABLE": {
        *(errors.NotServingError, errors.EngineStuckError, errors.GalleryBehindError),
        *(errors.BackendUnavailableError, errors.RemainsError),
    },
    "INTERNAL": {errors.ReidError, errors.EmbeddingError, errors.GalleryError, errors.ArtifactError},
}


@pytest.mark.parametrize(
    ("code", "kind"), [(code, kind) for code, kinds in EXPECTED.items() for kind in sorted(kinds, key=str)]
)
def test_an_error_leaves_with_its_code_and_reason(code: str, kind: type[errors.ReidError]):
    found, reason, message = status_of(kind("what was expected"))
    assert (found.name, reason) == (code, kind.reason)
    hidden = {"INTERNAL": "internal error; the server's log says more"}
    expected = AWAY if kind is errors.BackendUnavailableError else hidden.get(code, "what was expected")
    assert message == expected


@pytest.mark.parametrize("error", [ValueError("/secret/path"), errors.GalleryError("/secret/gallery.db is torn")])
def test_of_our_own_faults_nothing_leaves(error: Exception):
    code, _, message = status_of(error)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in message


def test_bytes_that_do_not_parse_are_the_callers_doing():
    assert status_of(DecodeError("at byte 7"))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


@pytest.mark.parametrize("text", ["x" * 9000, "人" * 9000, "\udcff" * 9000, "%\n\0" * 3000, "🐍" * 125])
def test_a_message_is_cut_between_characters_to_what_trailers_hold(text: str):
    message = status_of(errors.QueryError(text))[2]
    assert LONGEST_MESSAGE - 4 < len(message.encode()) <= LONGEST_MESSAGE
    assert text.encode(errors="replace").decode().startswith(message)
    refusal = refusal_of(errors.QueryError(text))
    assert (refusal.code, refusal.reason, refusal.message) == ("INVALID_ARGUMENT", "QUERY_INVALID", message)


class Context:
    """Keeps what a call is ended with."""

    async def abort(self, code, message, trailers):
        self.code, self.message, self.trailers = code, message, dict(trailers)
        raise grpc.aio.AbortError


async def details_of(error: Exception) -> tuple[status_pb2.Status, list]:
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        await abort(context, error, "id-7")  # type: ignore[arg-type]
    assert context.trailers["x-request-id"] == "id-7"
    status = status_pb2.Status.FromString(context.trailers[DETAILS_KEY])
    assert (status.code, status.message) == (context.code.value[0], context.message)
    found = []
    for detail in status.details:
        kind = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])
        found.append(kind.FromString(detail.value))
    return status, found


async def test_an_error_says_its_reason_and_the_id_of_its_call():
    _, details = await details_of(errors.QueryError("no"))
    assert details == [
        error_details_pb2.ErrorInfo(reason="QUERY_INVALID", domain="reidserve", metadata={"request_id": "id-7"})
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.OverloadedError("full", retry_after=0.25), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.RateLimitedError("slowly", retry_after=0.25), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.BackendUnavailableError("away", retry_after=0.25), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_whoever_may_try_again_is_told_when(error: errors.ReidError, code: grpc.StatusCode):
    status, (info, retry) = await details_of(error)
    assert (status.code, info.reason) == (code.value[0], error.reason)
    assert retry.retry_delay.ToMilliseconds() == 250
    assert refuse(error, "id-7").headers["retry-after"] == "1"


async def test_a_full_gallery_is_not_worth_trying_again():
    status, details = await details_of(errors.GalleryFullError("full"))
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert [detail.DESCRIPTOR.name for detail in details] == ["ErrorInfo"]


def test_the_page_names_every_reason_with_its_status_and_no_other():
    rows = re.findall(r"^\| ([A-Z_]+) \| (`[A-Z_]+`(?:, `[A-Z_]+`)*)[^|]*\|", PAGE.read_text(), re.MULTILINE)
    told = {(reason, code) for code, reasons in rows for reason in re.findall("[A-Z_]+", reasons)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ReidError)]
    known = {(kind.reason, status_of(kind.__new__(kind))[0].name) for kind in kinds}
    assert {pair for pair in told if pair[1] != "INTERNAL"} == {pair for pair in known if pair[1] != "INTERNAL"}
    assert {code for _, code in told} == set(EXPECTED)
