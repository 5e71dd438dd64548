"""A model at another server computes what it computes here, or is refused by name; what is away comes back."""

import gc
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from reidserve.datasets import read_crops
from reidserve.embed import Embedder, ModelUrl, open_embedder, parse_model, read_artifact
from reidserve.embed import remote_session as remote_sessions
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.engines import is_unverified
from reidserve.errors import (
    ArtifactError,
    BackendUnavailableError,
    DeviceError,
    EmbeddingError,
    ReidError,
    UsageError,
)
from reidserve.export.repository import write_repository
from reidserve.index import build_gallery, read_snapshot
from tests.conftest import DIM, HEIGHT, WIDTH
from tests.precisions import write_flavours
from tests.remotes import Remote, kill_remote, running, start_remote


@pytest.fixture(scope="module")
def repository(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder in a repository."""
    return write_repository(model, tmp_path_factory.mktemp("repositories")).folder


@pytest.fixture(scope="module")
def remote(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with running(repository, fault=tmp_path_factory.mktemp("faults") / "fault") as started:
        yield started


@pytest.fixture
def connected(remote: Remote) -> Iterator[Embedder]:
    """An embedder of `remote`, which is sound again afterwards."""
    yield open_embedder(remote.url)
    remote.fault.write_text("")


def crops_of(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("triton://host:8001/reid", ModelUrl("host:8001", "reid")),
        ("triton://[::1]:8001/a%20b", ModelUrl("[::1]:8001", "a b")),
        ("triton://host:8001/reid?contract=/models/a%3Fb", ModelUrl("host:8001", "reid", Path("/models/a?b"))),
    ],
)
def test_a_url_names_a_model_of_a_server(text: str, url: ModelUrl):
    assert parse_model(text) == url
    assert parse_model(str(url)) == url


@pytest.mark.parametrize("text", ["model", "model/", "/models/triton:8001/reid", "./triton:"])
def test_whatever_is_no_url_is_a_folder(text: str):
    assert parse_model(text) == Path(text)


@pytest.mark.parametrize(
    "text",
    [
        *("triton://", "triton://host/reid", "triton://host:8001", "triton://host:8001/", "triton://host:8001/a/b"),
        *(
            "triton://host:99999/reid",
            "triton://user@host:8001/reid",
            "triton://host:8001/reid?model=x",
            "http://a:1/b",
        ),
        *("triton://host:8001/reid?contract=", "triton://host:8001/reid#a", "triton://host:8001/reid?contract"),
    ],
)
def test_a_url_of_something_else_is_refused(text: str):
    with pytest.raises(UsageError, match="expected a model's folder or triton://host:8001/name"):
        parse_model(text)


def test_a_remote_model_computes_the_bits_of_the_local_one_in_any_batch(connected: Embedder, model: Path):
    local = open_embedder(model)
    assert connected.contract == local.contract
    assert (connected.engine, connected.max_batch, connected.unverified) == ("fp32/remote-stand-in-onnx", 32, False)
    for count in (1, 2, 7, 32, 70):
        np.testing.assert_array_equal(connected.embed(crops_of(count)), local.embed(crops_of(count)))


def test_a_gallery_that_a_remote_model_built_is_the_local_one_entry_by_entry(
    connected: Embedder, crops: Path, gallery: Path, tmp_path: Path
):
    build_gallery(read_crops(crops), crops, tmp_path / "remote.gallery", connected)
    far, near = read_snapshot(tmp_path / "remote.gallery"), read_snapshot(gallery)
    assert [entry.id for entry in far.entries()] == [entry.id for entry in near.entries()]
    for row in near.rows().tolist():
        np.testing.assert_array_equal(far.vector(row), near.vector(row))


def test_rankings_of_photographs_are_those_of_the_local_model(shared: Path, osnet: Path, tmp_path: Path):
    photographs = shared / "data" / "vehicles"
    paths = [photographs / "images" / "test" / name for name in (photographs / "test.txt").read_text().split()]
    assert len(paths) == 120
    images = [path.read_bytes() for path in paths]
    folder = write_repository(osnet, tmp_path / "repository").folder
    with running(folder, fault=tmp_path / "fault") as started:
        far = open_embedder(started.url).embed_encoded(images)
    near = open_embedder(osnet).embed_encoded(images)
    for rows in (far, near):
        assert rows.shape == (120, 512)
    np.testing.assert_array_equal(np.argsort(-far @ far.T, kind="stable"), np.argsort(-near @ near.T, kind="stable"))
    np.testing.assert_array_equal(far, near)


def test_a_server_that_tells_no_configuration_needs_the_artifact_beside_it(
    repository: Path, model: Path, other_model: Path, tmp_path: Path
):
    with running(repository, "--plain", fault=tmp_path / "fault") as plain:
        with pytest.raises(ArtifactError, match=r"does not tell its contract: .*\?contract=FOLDER"):
            open_embedder(plain.url)
        beside = open_embedder(ModelUrl(plain.url.address, "reid", model))
        assert beside.max_batch == 16
        np.testing.assert_array_equal(beside.embed(crops_of(3)), open_embedder(model).embed(crops_of(3)))
        with pytest.raises(ArtifactError, match="canaries differ by .* on fp32/remote-stand-in-onnx"):
            open_embedder(ModelUrl(plain.url.address, "reid", other_model))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("height", rf"expected UINT8 \(-1, {HEIGHT}, {WIDTH}, 3\) in, got UINT8 \(-1, {HEIGHT + 1}, {WIDTH}, 3\)"),
        ("dtype", rf"expected UINT8 .* in, got FP32 \(-1, {HEIGHT}, {WIDTH}, 3\)"),
        ("dim", rf"expected FP32 \(-1, {DIM}\) out, got FP32 \(-1, {DIM + 1}\)"),
        ("outputs", "expected one tensor in and one out, got 1 and 2"),
    ],
)
def test_a_model_that_takes_or_gives_something_else_is_refused(repository: Path, tmp_path: Path, wrong: str, said: str):
    with (
        running(repository, "--wrong", wrong, fault=tmp_path / "fault") as started,
        pytest.raises(ArtifactError, match=said),
    ):
        open_embedder(started.url)


def test_what_cannot_be_asked_for_of_a_remote_model_is_refused(remote: Remote):
    with pytest.raises(DeviceError, match="runs where it is: --device cuda is of a model's folder"):
        open_embedder(remote.url, device="cuda")
    with pytest.raises(DeviceError, match="computes in fp32, fp16 was asked for: give --precision fp32"):
        open_embedder(remote.url, precision="fp16")
    with pytest.raises(BackendUnavailableError, match="/reidd is not ready: the server has no such model"):
        open_embedder(ModelUrl(remote.url.address, "reidd"))


@pytest.fixture(scope="module")
def flavoured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flavours(model, tmp_path_factory.mktemp("models") / "flavoured")


def test_a_flavour_is_asked_for_by_its_precision(flavoured: Path, tmp_path: Path):
    folder = write_repository(flavoured, tmp_path / "repository", precision="fp16").folder
    with running(folder, fault=tmp_path / "fault") as started:
        with pytest.raises(DeviceError, match="computes in fp16, fp32 was asked for: give --precision fp16"):
            open_embedder(started.url)
        far, near = open_embedder(started.url, precision="fp16"), open_embedder(flavoured, precision="fp16")
        assert (far.engine, far.unverified) == ("fp16/remote-stand-in-onnx", True)
        np.testing.assert_array_equal(far.embed(crops_of(5)), near.embed(crops_of(5)))


def test_int8_needs_the_artifact_beside_it_since_its_canaries_show_too_little(flavoured: Path, tmp_path: Path):
    folder = write_repository(flavoured, tmp_path / "repository", precision="int8").folder
    assert "instance_group { kind: KIND_CPU }" in (folder / "config.pbtxt").read_text().splitlines()
    with running(folder, fault=tmp_path / "fault") as started:
        with pytest.raises(ArtifactError, match=r"would not show that images are resized otherwise here: .*contract="):
            open_embedder(started.url, precision="int8")
        far = open_embedder(ModelUrl(started.url.address, "reid", flavoured), precision="int8")
        near = open_embedder(flavoured, precision="int8")
        np.testing.assert_array_equal(far.embed(crops_of(5)), near.embed(crops_of(5)))


def test_a_plan_at_another_server_is_unverified_until_the_gate_has_passed_it(model: Path):
    contract = read_artifact(model).contract
    assert not is_unverified(contract, "fp32/remote-onnxruntime_onnx")
    assert is_unverified(contract, "fp32/remote-tensorrt_plan")


def test_canaries_that_are_not_the_contracts_are_refused(model: Path, tmp_path: Path):
    folder = write_repository(model, tmp_path / "repository").folder
    config = folder / "config.pbtxt"
    before = config.read_text()
    config.write_text(re.sub(r'(\\"images\\":\[\\")....', r"\1AAAA", before))
    assert config.read_text() != before
    with (
        running(folder, fault=tmp_path / "fault") as started,
        pytest.raises(ArtifactError, match="the canaries are not the contract's"),
    ):
        open_embedder(started.url)


def test_a_server_that_is_away_is_said_to_be(tmp_path: Path, repository: Path):
    with running(repository, fault=tmp_path / "fault") as started:
        url = started.url
    with pytest.raises(BackendUnavailableError, match=f"^triton://{url.address}/reid does not answer: ") as refused:
        open_embedder(url)
    assert refused.value.retry_after == 1.0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("refuse", r"reid refuses with INTERNAL: out of memory$"),
        ("nan", "no unit vector for 1 of 1 images"),
        ("columns", rf"expected FP32 \(1, {DIM}\) of the server, got FP32 \(1, {DIM - 1}\)"),
        ("rows", rf"expected FP32 \(1, {DIM}\) of the server, got FP32 \(0, {DIM}\)"),
        ("short", f"expected {DIM} numbers of the server, got {DIM - 1}"),
        ("huge", "refuses with RESOURCE_EXHAUSTED: .*larger than max"),
    ],
)
def test_a_wrong_answer_is_an_error_of_its_images_and_the_next_is_asked_for(
    connected: Embedder, remote: Remote, embedder: Embedder, fault: str, said: str
):
    remote.fault.write_text(fault)
    with pytest.raises(EmbeddingError, match=said):
        connected.embed(crops_of(1))
    assert not connected.away
    remote.fault.write_text("")
    np.testing.assert_array_equal(connected.embed(crops_of(2)), embedder.embed(crops_of(2)))


def test_an_answer_number_by_number_is_as_good_as_a_raw_one(connected: Embedder, remote: Remote, embedder: Embedder):
    remote.fault.write_text("numbers")
    np.testing.assert_array_equal(connected.embed(crops_of(3)), embedder.embed(crops_of(3)))


def test_a_late_answer_means_that_the_server_is_away_until_it_answers_in_time(
    connected: Embedder, remote: Remote, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote_sessions, "CALL_SECONDS", 1.5)
    remote.fault.write_text("slow")
    with pytest.raises(BackendUnavailableError, match="the server that computes the model is away"):
        connected.embed(crops_of(1))
    assert connected.away
    remote.fault.write_text("")
    monkeypatch.undo()
    wait_until(lambda: not connected.away)
    assert connected.embed(crops_of(1)).shape == (1, DIM)


def test_a_model_that_is_unloaded_is_noticed_without_a_call(connected: Embedder, remote: Remote):
    remote.fault.write_text("unready")
    wait_until(lambda: connected.away)
    remote.fault.write_text("")
    wait_until(lambda: not connected.away)


def test_another_version_is_held_to_the_canaries_before_it_is_used(connected: Embedder, remote: Remote, caplog):
    remote.fault.write_text("version")
    with pytest.raises(BackendUnavailableError):
        connected.embed(crops_of(1))
    wait_until(lambda: not connected.away)
    assert connected.embed(crops_of(1)).shape == (1, DIM)
    assert "answers with version '2', version '1' was checked" in caplog.text
    assert "fp32/remote-stand-in-onnx is back" in caplog.text


def test_what_comes_back_as_another_model_is_not_used(repository: Path, other_model: Path, tmp_path: Path, caplog):
    other = write_repository(other_model, tmp_path / "repository").folder
    first = start_remote(repository, fault=tmp_path / "fault")
    port = int(first.url.address.rpartition(":")[2])
    try:
        connected = open_embedder(first.url)
    finally:
        kill_remote(first)
    with pytest.raises(BackendUnavailableError, match="try again in 1 s"):
        connected.embed(crops_of(1))
    second = start_remote(other, fault=tmp_path / "fault", port=port)
    try:
        wait_until(lambda: "canaries differ by" in caplog.text)
        with pytest.raises(BackendUnavailableError):
            connected.embed(crops_of(1))
    finally:
        kill_remote(second)
    third = start_remote(repository, fault=tmp_path / "fault", port=port)
    try:
        wait_until(lambda: not connected.away)
        assert connected.embed(crops_of(1)).shape == (1, DIM)
    finally:
        kill_remote(third)


def test_the_watch_ends_with_the_embedder(remote: Remote):
    before = set(threading.enumerate())
    embedder = open_embedder(remote.url)
    (watch,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "model watch")
    del embedder
    gc.collect()
    wait_until(lambda: not watch.is_alive())


def test_a_call_that_another_machine_fails_names_no_address(connected: Embedder, remote: Remote):
    remote.fault.write_text("unready")
    wait_until(lambda: connected.away)
    with pytest.raises(ReidError) as failed:
        connected.embed_each(crops_of(2))
    assert isinstance(failed.value, BackendUnavailableError)
    assert remote.url.address not in str(failed.value)


def test_an_artifact_and_its_repository_are_of_one_identity(model: Path, connected: Embedder):
    told = msgspec.json.decode((model / CONTRACT_FILE).read_bytes())
    assert told["files"]["model.onnx"] == connected.contract.files["model.onnx"]
    assert connected.contract.identity == read_artifact(model).contract.identity
