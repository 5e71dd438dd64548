"""Deriving: flavours and plans are put beside a model, each proven, or the model is as it was."""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from reidserve.datasets import Crop, read_crops
from reidserve.embed import Flavour, Plan, Precision, open_embedder, read_artifact, read_image
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.canaries import REFERENCE_ENGINE
from reidserve.embed.contract import MODEL_FILE, PARITY_FILE, encode_contract
from reidserve.errors import (
    ArtifactError,
    DatasetError,
    EvaluationError,
    ExportError,
    ImageError,
    OutputExistsError,
    ParityError,
)
from reidserve.export.convert import Assembled, Feeding, adopt
from reidserve.export.derive import (
    Calibration,
    Verification,
    check_apart,
    derive_flavour,
    derive_plan,
    export_proven,
    prove_model,
)
from reidserve.export.derive.addition import Addition
from reidserve.export.derive.calibration import JUDGING, Loss, halve
from reidserve.export.derive.record import decode_record, encode_record, updated
from reidserve.export.parity import Bounds
from reidserve.export.plans import plan_file
from tests import tensorrt_twin
from tests.conftest import HEIGHT, IMAGENET, WIDTH, foreign_model, save_onnx, write_crops
from tests.flavours import wide_channel

FEEDING = Feeding(height=HEIGHT, width=WIDTH, resize="bilinear", preprocessing=IMAGENET)
HALF, INTEGER, SIGNED = "model.fp16.onnx", "model.int8.onnx", "model.int8.tensorrt.onnx"
LENIENT: dict[Precision, Bounds] = {
    "fp32": Bounds(points=0.05, cosine=0.99999),
    "fp16": Bounds(points=0.2, cosine=0.999),
    # Of 30 identities the interval is wide: that is about figures, these tests are about files.
    "int8": Bounds(points=8, cosine=0.9),
}


A_PLAN = Plan(
    graph=HALF,
    precision="fp16",
    gpu="NVIDIA L4",
    capability="8.9",
    driver="580.65.06",
    tensorrt="10.13.0",
    batches=(1, 8),
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> list[Crop]:
    folder = tmp_path_factory.mktemp("verified") / "crops"
    write_crops(folder, pids=30)
    return read_crops(folder)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> list[Crop]:
    """16 identities that the verified ones are not among."""
    folder = tmp_path_factory.mktemp("training") / "crops"
    write_crops(folder, pids=46)
    return [crop for crop in read_crops(folder) if int(crop.pid or 0) > 30]


@pytest.fixture
def calibration(training: list[Crop], tmp_path: Path) -> Calibration:
    return Calibration(crops=training, budget=5, seed=0, cache=tmp_path / "cache")


@pytest.fixture(scope="module")
def verification(verified: list[Crop]) -> Verification:
    return Verification(query=verified, gallery=verified, bounds=LENIENT, samples=200)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A model of one's own, alone in its folder."""
    return Path(shutil.copytree(model, tmp_path / "models" / "model"))


@pytest.fixture(scope="module")
def derived(
    model: Path, verification: Verification, training: list[Crop], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model with both flavours."""
    out = tmp_path_factory.mktemp("derived")
    shutil.copytree(model, out / "model")
    calibration = Calibration(crops=training, budget=5, seed=0, cache=out / "cache")
    derive_flavour(out / "model", "fp16", verification=verification)
    derive_flavour(out / "model", "int8", verification=verification, calibration=calibration)
    return out / "model"


def test_flavours_lie_beside_the_model_and_leave_its_identity_as_it_is(model: Path, derived: Path):
    before, after = read_artifact(model).contract, read_artifact(derived).contract
    assert after.identity == before.identity
    assert (derived / MODEL_FILE).read_bytes() == (model / MODEL_FILE).read_bytes()
    assert set(after.flavours) == {HALF, INTEGER, SIGNED}
    assert set(contents(derived)) == {*before.files, *after.flavours, PARITY_FILE, CONTRACT_FILE}
    assert [path.name for path in derived.parent.iterdir() if path.name.endswith((".partial", ".old"))] == []


def test_the_contract_says_how_each_flavour_was_earned(derived: Path, training: list[Crop]):
    flavours = read_artifact(derived).contract.flavours
    (record,) = decode_record((derived / PARITY_FILE).read_bytes())
    for name, engine in ((HALF, "fp16/onnxruntime-cpu"), (INTEGER, "int8/onnxruntime-cpu")):
        check = next(check for check in flavours[name].checks if check.engine == engine)
        row = next(row for row in record.rows if row.engine == engine and not row.mixed)
        assert (check.cosine, check.change, check.low, check.high) == (row.cosine_min, row.change, row.low, row.high)
        assert check.data == record.data
        assert check.queries == 60
        assert row.refused is None
        assert not flavours[name].unverified
    assert [check.engine for check in flavours[SIGNED].checks] == ["int8-signed/onnxruntime-cpu"]
    assert flavours[SIGNED].signed
    assert not flavours[INTEGER].signed
    assert flavours[INTEGER].calibration == flavours[SIGNED].calibration is not None
    assert flavours[HALF].calibration is None


def test_each_engine_here_leaves_canaries_that_a_start_finds(derived: Path, model: Path, verified: list[Crop]):
    canaries = read_artifact(derived).canaries.embeddings
    assert {REFERENCE_ENGINE, "fp16/onnxruntime-cpu", "int8/onnxruntime-cpu"} <= set(canaries)
    assert "int8-signed/onnxruntime-cpu" not in canaries
    assert canaries[REFERENCE_ENGINE] == read_artifact(model).canaries.embeddings[REFERENCE_ENGINE]
    images = [read_image(crop.path) for crop in verified[:8]]
    plain = open_embedder(model).embed_encoded(images)
    expected: list[tuple[Precision, float, float]] = [("fp16", 0.999, 1.0), ("int8", 0.9, 0.99999)]
    for precision, least, most in expected:
        embedder = open_embedder(derived, precision=precision)
        assert embedder.engine == f"{precision}/onnxruntime-cpu"
        cosines = np.vecdot(plain, embedder.embed_encoded(images))
        assert least < cosines.min() < most + 1e-6, precision


def test_what_was_measured_on_the_same_crops_stands_in_one_table(derived: Path):
    (record,) = decode_record((derived / PARITY_FILE).read_bytes())
    engines = list(dict.fromkeys(row.engine for row in record.rows))
    assert engines[0] == record.reference == REFERENCE_ENGINE
    assert {"fp16/onnxruntime-cpu", "int8/onnxruntime-cpu", "int8-signed/onnxruntime-cpu"} < set(engines)
    assert all(sum(row.engine == engine for row in record.rows) == 2 for engine in engines[1:])


def test_a_record_takes_new_figures_for_old_and_keeps_what_was_measured_on_other_crops(derived: Path):
    (record,) = decode_record((derived / PARITY_FILE).read_bytes())
    reference, *rows = record.rows
    half = [row for row in rows if row.precision == "fp16"]
    again = replace_rows(record, [reference, *(msgspec.structs.replace(row, cosine_min=0.5) for row in half)])
    (merged,) = updated((record,), again)
    assert len(merged.rows) == len(record.rows)
    assert {row.cosine_min for row in merged.rows if row.precision == "fp16"} == {0.5}
    assert [row for row in merged.rows if row.precision == "int8"] == [row for row in rows if row.precision == "int8"]
    elsewhere = msgspec.structs.replace(again, data="0" * 64)
    kept, new = updated((record,), elsewhere)
    assert new == elsewhere
    assert {row.precision for row in kept.rows[1:]} == {"int8"}
    assert kept.rows[0] == reference
    assert updated((replace_rows(record, [reference, *half]),), None, anew=lambda engine: "fp16" in engine) == ()
    assert decode_record(encode_record((kept, new)) or b"") == (kept, new)
    with pytest.raises(ArtifactError, match="parity.json does not read"):
        decode_record(b'[{"rows": []}]')


def replace_rows(record, rows: Sequence):
    return msgspec.structs.replace(record, rows=tuple(rows))


def test_a_flavour_that_loses_is_not_written(folder: Path, verification: Verification, calibration: Calibration):
    before = contents(folder)
    strict = replace(verification, bounds={**LENIENT, "int8": Bounds(points=8, cosine=0.99999)})
    with pytest.raises(ParityError, match="nothing was written: int8/onnxruntime-cpu: an image's two") as refused:
        derive_flavour(folder, "int8", verification=strict, calibration=calibration)
    assert refused.value.parity.refusals()  # type: ignore[attr-defined]
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whatever_ends_it_the_model_is_as_it_was(folder: Path, verification: Verification, error: type[BaseException]):
    before = contents(folder)

    def stop(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        derive_flavour(folder, "fp16", verification=verification, progress=stop)
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_what_another_command_added_meanwhile_is_not_lost(folder: Path, verification: Verification):
    def meanwhile(done: int, total: int) -> None:
        if not (folder / "model.fp16.onnx").exists():
            derive_flavour(folder, "fp16")

    with pytest.raises(ExportError, match="was changed by another command meanwhile: run this one again"):
        prove_model(folder, verification=verification, progress=meanwhile)
    assert HALF in read_artifact(folder).contract.flavours
    assert list(folder.parent.iterdir()) == [folder]


def test_without_proof_a_flavour_is_marked_and_proof_takes_the_mark_away(folder: Path, verification: Verification):
    made = derive_flavour(folder, "fp16")
    assert made.parity is None
    flavour = read_artifact(folder).contract.flavours[HALF]
    assert flavour.unverified
    assert flavour.checks == ()
    assert PARITY_FILE not in contents(folder)
    assert open_embedder(folder, precision="fp16").unverified
    with pytest.raises(OutputExistsError, match="has model.fp16.onnx already: make it again with --force"):
        derive_flavour(folder, "fp16", verification=verification)
    derive_flavour(folder, "fp16", verification=verification, force=True)
    assert not read_artifact(folder).contract.flavours[HALF].unverified
    assert not open_embedder(folder, precision="fp16").unverified


def test_a_flavour_made_anew_takes_what_was_made_of_the_old_one_with_it(folder: Path, verification: Verification):
    derive_flavour(folder, "fp16", verification=verification)
    add_plans(folder, "fp16", "fp32")
    derive_flavour(folder, "fp16", force=True)
    contract = read_artifact(folder).contract
    assert set(contract.plans) == {plan_file("fp32", "NVIDIA L4")}
    assert plan_file("fp16", "NVIDIA L4") not in contents(folder)
    assert PARITY_FILE not in contract.files  # its figures were the old flavour's


def add_plans(folder: Path, *precisions: Precision) -> None:
    """Plans as of a GPU that is not here."""
    contract = read_artifact(folder).contract
    files, plans = dict(contract.files), {}
    for precision in precisions:
        name = plan_file(precision, "NVIDIA L4")
        (folder / name).write_bytes(b"compiled")
        files[name] = hashlib.sha256(b"compiled").hexdigest()
        graph = HALF if precision == "fp16" else MODEL_FILE
        plans[name] = msgspec.structs.replace(A_PLAN, graph=graph, precision=precision)
    (folder / CONTRACT_FILE).write_bytes(encode_contract(msgspec.structs.replace(contract, files=files, plans=plans)))


def test_what_is_not_the_models_is_never_deleted(folder: Path):
    (folder / "thesis.tex").write_text("years of work")
    before = contents(folder)
    with pytest.raises(OutputExistsError, match=r"which replacing it would delete \(thesis.tex\)"):
        derive_flavour(folder, "fp16")
    assert contents(folder) == before


def test_ranges_come_from_the_cache_where_the_same_crops_were_seen(folder: Path, calibration: Calibration):
    first = derive_flavour(folder, "int8", calibration=calibration).contract
    (kept,) = calibration.cache.iterdir()
    written = kept.stat().st_mtime_ns
    again = derive_flavour(folder, "int8", calibration=calibration, force=True).contract
    assert again.files[INTEGER] == first.files[INTEGER]
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(b"damaged")
    assert derive_flavour(folder, "int8", calibration=calibration, force=True).contract.files == again.files
    other = replace(calibration, seed=1)
    elsewhere = derive_flavour(folder, "int8", calibration=other, force=True).contract
    assert elsewhere.flavours[INTEGER].calibration != first.flavours[INTEGER].calibration
    assert len(list(calibration.cache.iterdir())) == 2


def test_what_is_lost_is_measured_on_identities_that_did_not_calibrate(training: list[Crop]):
    halves = halve(training, seed=0)
    calibrating, judging = ({crop.pid for crop in part} for part in (halves.calibrating, halves.judging))
    assert len(calibrating) == len(judging) == 8
    assert not calibrating & judging
    assert halve(training, seed=0) == halves
    assert halve(training, seed=1) != halves
    many = [Crop(Path(f"{pid}-{place}.png"), pid=str(pid)) for pid in range(40) for place in range(60)]
    assert JUDGING - 60 < len(halve(many, seed=0).judging) <= JUDGING
    unlabelled = [Crop(crop.path) for crop in training]
    assert halve(unlabelled, seed=0).calibrating == unlabelled
    assert halve(unlabelled, seed=0).judging == []


def test_a_budget_that_nothing_keeps_writes_nothing(folder: Path, calibration: Calibration):
    before = contents(folder)
    with pytest.raises(ExportError, match=r"this precision loses .* points of mAP at best"):
        derive_flavour(folder, "int8", calibration=replace(calibration, budget=-100))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("precision", "factor", "words"),
    [
        ("fp16", 3e4, "3 operators meet values beyond float16 and stay in fp32: backbone/c1, backbone/r1, backbone/c2"),
        ("fp16", 1e6, "3 operators meet values beyond float16 and stay in fp32: backbone/c1, backbone/r1, backbone/c2"),
        ("int8", 1e3, "with 2 operators kept in fp32 for their sensitivity"),
    ],
)
def test_what_proves_sensitive_is_kept_and_recorded(
    tmp_path: Path,
    precision: Precision,
    factor: float,
    words: str,
    verification: Verification,
    calibration: Calibration,
):
    # One channel between two convolutions is so wide that float16 ends, and that int8 has no steps for the others.
    foreign = save_onnx(foreign_model(edit=wide_channel(factor)), tmp_path / "foreign.onnx")
    adopt(foreign, tmp_path / "model", FEEDING)
    made = derive_flavour(
        tmp_path / "model",
        precision,
        calibration=replace(calibration, budget=0.5),
        targets=["cpu"],
        verification=verification,
    )
    (flavour,) = made.contract.flavours.values()
    assert words in made.remarks[0]
    assert len(flavour.kept) == int(words.partition(" operators")[0].split()[-1])
    assert not flavour.unverified


def test_a_graph_that_fails_on_images_loses_everything(model: Path, training: list[Crop], tmp_path: Path):
    damaged_image = tmp_path / "0046_c3s1_000000_00.png"
    damaged_image.write_bytes(b"no image")
    loss = Loss(open_embedder(model), [*training, Crop(damaged_image, pid="0046", camid="3")])
    graph = onnx.load_model_from_string((model / MODEL_FILE).read_bytes())
    assert loss(graph) == 0
    assert loss.left_out == 1
    for place, tensor in enumerate(graph.graph.initializer):
        if tensor.name.endswith("w3"):
            values = onnx.numpy_helper.to_array(tensor) * np.float32("nan")
            graph.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    assert loss(graph) == math.inf


def test_a_training_image_that_cannot_be_read_is_named(folder: Path, calibration: Calibration, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    crops = [Crop(crop.path) for crop in calibration.crops[:4]] + [Crop(tmp_path / "broken.png")]
    with pytest.raises(ImageError, match="broken.png cannot calibrate: expected a JPEG"):
        derive_flavour(folder, "int8", calibration=replace(calibration, crops=crops))


def test_crops_without_labels_calibrate_and_say_what_was_not_measured(folder: Path, calibration: Calibration):
    unlabelled = replace(calibration, crops=[Crop(crop.path) for crop in calibration.crops])
    made = derive_flavour(folder, "int8", calibration=unlabelled)
    assert "the training images have no labels" in made.remarks[0]
    assert made.contract.flavours[INTEGER].kept == ()
    alone = [Crop(crop.path, pid=f"p{place}") for place, crop in enumerate(calibration.crops)]
    with pytest.raises(EvaluationError, match="of 16 training images none has a right answer among the others"):
        derive_flavour(folder, "int8", calibration=replace(calibration, crops=alone), force=True)


def test_the_int8_graphs_are_made_one_by_one_where_that_is_asked(
    folder: Path, verification: Verification, calibration: Calibration
):
    derive_flavour(folder, "int8", calibration=calibration, targets=["tensorrt"], verification=verification)
    assert set(read_artifact(folder).contract.flavours) == {SIGNED}
    derive_flavour(folder, "int8", calibration=calibration, targets=["cpu"], verification=verification)
    first = read_artifact(folder)
    assert set(first.contract.flavours) == {INTEGER, SIGNED}
    again = replace(calibration, seed=1)
    derive_flavour(folder, "int8", calibration=again, targets=["cpu"], verification=verification, force=True)
    then = read_artifact(folder)
    assert then.contract.flavours[SIGNED] == first.contract.flavours[SIGNED]
    assert then.contract.flavours[INTEGER].calibration != first.contract.flavours[INTEGER].calibration
    (record,) = decode_record((folder / PARITY_FILE).read_bytes())
    assert {"int8/onnxruntime-cpu", "int8-signed/onnxruntime-cpu"} <= {row.engine for row in record.rows}


def test_what_is_made_anew_is_known_by_the_engines_that_ran_it():
    half, unsigned, signed = (
        Addition(precision="fp16", flavours={HALF: Flavour(precision="fp16")}),
        Addition(precision="int8", flavours={INTEGER: Flavour(precision="int8")}),
        Addition(precision="int8", flavours={SIGNED: Flavour(precision="int8", signed=True)}),
    )
    expected = {
        "fp32/onnxruntime-cpu": (False, False, False),
        "fp16/onnxruntime-cpu": (True, False, False),
        "fp16/tensorrt": (True, False, False),
        "int8/openvino-cpu": (False, True, False),
        "int8/tensorrt": (False, False, True),
        "int8-signed/onnxruntime-cpu": (False, False, True),
    }
    for engine, anew in expected.items():
        assert tuple(each.makes_anew(engine) for each in (half, unsigned, signed)) == anew, engine
    plan = Addition(precision="fp16", plans={"model.fp16.x.plan": A_PLAN})
    assert [plan.makes_anew(engine) for engine in ("fp16/tensorrt", "fp16/onnxruntime-cpu")] == [True, False]
    assert not any(Addition(precision="fp32").makes_anew(engine) for engine in expected)


def test_int8_needs_training_crops(folder: Path):
    with pytest.raises(ExportError, match="name them with --calibrate TRAIN"):
        derive_flavour(folder, "int8")


def test_crops_that_are_verified_on_cannot_calibrate(training: list[Crop], verified: list[Crop], tmp_path: Path):
    check_apart(training, verified)
    with pytest.raises(DatasetError, match="of --calibrate is among the images of --verify too"):
        check_apart([*training, verified[3]], verified)
    copy = tmp_path / "another name.png"
    shutil.copy(verified[5].path, copy)
    with pytest.raises(DatasetError, match="another name.png of --calibrate is among"):
        check_apart([*training, Crop(copy)], verified)


def test_without_labels_rankings_alone_are_compared(folder: Path, verification: Verification):
    unlabelled = [Crop(crop.path) for crop in verification.query]
    made = derive_flavour(folder, "fp16", verification=replace(verification, query=unlabelled, gallery=unlabelled))
    assert made.parity is not None
    assert not made.parity.labelled
    check = made.contract.flavours[HALF].checks[0]
    assert check.change is None
    assert check.cosine > 0.999
    assert {row.top1 for row in made.parity.rows} == {1.0}


def test_a_plan_is_compiled_of_what_was_made_where_tensorrt_is(folder: Path):
    before = contents(folder)
    with pytest.raises(ArtifactError, match=r"the model has no model.fp16.onnx: make it with reid-export MODEL"):
        derive_plan(folder, "fp16", batches=[1, 8])
    with pytest.raises(ExportError, match=r"pip install .*reidserve\[tensorrt"):
        derive_plan(folder, "fp32", batches=[1, 8])
    assert contents(folder) == before


@pytest.fixture
def with_plan(folder: Path, verification: Verification) -> Iterator[Path]:
    """A model with an unverified fp16 flavour and a plan of it, proven, on twins of TensorRT and CUDA."""
    pytest.importorskip("polygraphy", reason="needs reidserve[tensorrt]")
    derive_flavour(folder, "fp16")
    with tensorrt_twin.installed():
        derive_plan(folder, "fp16", batches=[1, 4], verification=verification)
        yield folder


def test_a_plan_is_proven_by_itself_and_served(with_plan: Path, model: Path, verified: list[Crop]):
    contract = read_artifact(with_plan).contract
    ((name, plan),) = contract.plans.items()
    assert (plan.graph, plan.batches, plan.unverified) == (HALF, (1, 4), False)
    assert [check.engine for check in plan.checks] == ["fp16/tensorrt"]
    assert contract.flavours[HALF].unverified  # what was proven is the plan
    assert contract.identity == read_artifact(model).contract.identity
    assert name in contents(with_plan)
    embedder = open_embedder(with_plan, precision="fp16", device="tensorrt")
    assert not embedder.unverified
    images = [read_image(crop.path) for crop in verified[:6]]
    plain = open_embedder(model).embed_encoded(images)
    np.testing.assert_allclose(np.vecdot(embedder.embed_encoded(images), plain), 1, atol=1e-3)


def test_a_plan_that_is_there_is_not_built_for_nothing(with_plan: Path, tmp_path: Path):
    timings = tmp_path / "timings"
    with pytest.raises(OutputExistsError, match=r"has model.fp16.*plan already: make it again with --force"):
        derive_plan(with_plan, "fp16", batches=[1], timing_cache=timings)
    assert not timings.exists()
    derive_plan(with_plan, "fp16", batches=[1], timing_cache=timings, force=True)
    assert timings.exists()


def test_a_plan_goes_with_the_graph_that_it_was_compiled_from(with_plan: Path, verification: Verification):
    assert "fp16/tensorrt" in read_artifact(with_plan).canaries.embeddings
    derive_plan(with_plan, "fp16", batches=[2], force=True)
    ((name, plan),) = read_artifact(with_plan).contract.plans.items()
    assert (plan.batches, plan.unverified, plan.checks) == ((2,), True, ())
    assert PARITY_FILE not in contents(with_plan)  # it was of the old plan alone
    derive_flavour(with_plan, "fp16", verification=verification, force=True)
    then = read_artifact(with_plan)
    assert then.contract.plans == {}
    assert name not in contents(with_plan)
    assert "fp16/tensorrt" not in then.canaries.embeddings


def test_a_first_export_is_proven_against_what_it_was_made_from(tmp_path: Path, verification: Verification):
    foreign = save_onnx(foreign_model(), tmp_path / "foreign.onnx")
    out = tmp_path / "models" / "model"
    made, parity = export_proven(lambda stage: adopt(foreign, stage, FEEDING), out, verification, force=False)
    assert read_artifact(out).contract == made.contract
    assert parity.reference == "fp32/onnx-by-hand"
    served = [row for row in parity.rows if row.engine == REFERENCE_ENGINE]
    assert [row.mixed for row in served] == [False, True]
    assert all(row.change == 0 and row.refused is None and row.top10 == 1 for row in served)
    assert decode_record((out / PARITY_FILE).read_bytes()) == (parity,)
    assert made.contract.identity == adopt(foreign, tmp_path / "plain", FEEDING).contract.identity


def test_a_first_export_that_ranks_otherwise_is_left_nowhere(tmp_path: Path, verification: Verification):
    foreign = save_onnx(foreign_model(), tmp_path / "foreign.onnx")
    other = save_onnx(foreign_model(seed=1), tmp_path / "other.onnx")
    out = tmp_path / "models" / "model"

    def mistaken(stage: Path) -> Assembled:
        reference = adopt(other, tmp_path / "other", FEEDING).reference
        return replace(adopt(foreign, stage, FEEDING), reference=reference)

    with pytest.raises(ParityError, match=f"nothing was written: {REFERENCE_ENGINE}: an image's two embeddings"):
        export_proven(mistaken, out, verification, force=False)
    assert not out.parent.exists()
