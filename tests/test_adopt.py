import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidserve.embed import Network, Source, open_embedder, read_artifact
from reidserve.errors import ExportError, OutputExistsError, ReidError
from reidserve.export.convert import Feeding, adopt
from tests.conftest import DIM, HEIGHT, IMAGENET, WIDTH, foreign_model, save_onnx
from tests.test_wrap import branching, pooling_model

FEEDING = Feeding(height=HEIGHT, width=WIDTH, resize="bilinear", preprocessing=IMAGENET)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where to adopt to: `models/model`, alone in its folder."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "model"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save_onnx(foreign_model(), tmp_path / "small.onnx")


@pytest.fixture
def refuses(tmp_path: Path, out: Path) -> Callable[..., None]:
    """Adopt a model and see that it is refused with these words, and that nothing is left."""

    def check(model: onnx.ModelProto | bytes, words: str, feeding: Feeding = FEEDING, **options: Any) -> None:
        path = tmp_path / "foreign.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        with pytest.raises(ExportError, match=words):
            adopt(path, out, feeding, **options)
        assert list(out.parent.iterdir()) == []

    return check


def with_tail(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """The small network, whose features are now called `raw`, with nodes after it that make `feature`."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.node[-1].output[0] = "raw"
        graph.node.extend(nodes)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (weights or {}).items())

    return foreign_model(edit=edit)


def node(operator: str, *inputs: str, out: str = "feature", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [out], **attributes)


def declare(model: onnx.ModelProto, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The same model, saying that its output has this shape."""
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("feature", kind, shape))
    return model


def test_an_adopted_model_is_an_artifact_that_says_what_it_is(small: Path, out: Path):
    made = adopt(small, out, FEEDING)
    contract = read_artifact(out).contract
    assert made.contract == contract
    assert made.difference < 1e-6
    assert (contract.height, contract.width, contract.resize, contract.dim) == (HEIGHT, WIDTH, "bilinear", DIM)
    assert (contract.preprocessing, contract.network) == (IMAGENET, Network())
    assert contract.source == Source(kind="onnx", sha256=hashlib.sha256(small.read_bytes()).hexdigest())
    assert contract.files["model.onnx"] == hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    assert open_embedder(out).contract.identity == contract.identity
    assert list(out.parent.iterdir()) == [out]


def test_adopting_twice_gives_the_same_files(small: Path, out: Path):
    adopt(small, out, FEEDING)
    adopt(small, out.with_name("again"), FEEDING)
    assert contents(out) == contents(out.with_name("again"))
    assert sorted(contents(out)) == ["artifact.json", "canaries.json", "model.onnx"]


def test_a_trained_network_is_adopted_to_the_last_digit(shared: Path, osnet: Path, out: Path):
    foreign = shared / "models" / "osnet_x0_25_msmt17.onnx"
    made = adopt(foreign, out, Feeding(height=256, width=128, resize="bilinear", preprocessing=IMAGENET))
    assert made.difference < 1e-6
    assert made.contract.dim == 512
    assert contents(out) == contents(osnet)


@pytest.mark.parametrize(
    "model",
    [
        pooling_model(11, 6),
        pooling_model(20, 9),
        foreign_model(shape=("N", 3, "H", "W")),
        foreign_model(edit=branching),
        declare(foreign_model(), "N", "D"),
        with_tail(node("Clip", "raw", "", "six"), weights={"six": np.array(6, np.float32)}),
    ],
    ids=["opset 11", "opset 20", "free size", "branches", "free dim", "a left-out input"],
)
def test_models_of_many_makes_are_adopted(tmp_path: Path, out: Path, model: onnx.ModelProto):
    made = adopt(save_onnx(model, tmp_path / "foreign.onnx"), out, FEEDING)
    assert made.contract.dim == DIM
    assert made.difference < 1e-6


def test_a_file_that_is_no_onnx_is_refused(refuses):
    whole = foreign_model().SerializeToString()
    refuses(b"", "is no ONNX model: it has no graph")
    for data in (
        b"path,pid\na.jpg,1\n",
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        *(whole[: len(whole) * part // 10] for part in (1, 5, 9)),
    ):
        refuses(data, "is no ONNX model: ")
    broken = foreign_model()
    broken.graph.node[1].op_type = "Nope"
    refuses(broken, "is no valid ONNX model: No Op registered for Nope")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, out: Path):
    for path in (tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(ExportError, match=f"{path} cannot be read: "):
            adopt(path, out, FEEDING)
    assert list(out.parent.iterdir()) == []


def keep_outside(tensor: onnx.TensorProto, location: str) -> bytes:
    """Move a tensor's values into another file, as `save_as_external_data` does."""
    values = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(values)))):
        tensor.external_data.add(key=key, value=value)
    return values


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd"])
@pytest.mark.parametrize("place", ["weights", "constant", "weights of a branch", "constant of a branch"])
def test_weights_in_other_files_are_refused_and_never_read(tmp_path: Path, monkeypatch, refuses, location, place):
    where, branch = place.partition(" of ")[::2]
    tensor = numpy_helper.from_array(np.full(DIM, 2, np.float32), "w")
    values = keep_outside(tensor, location)
    nodes, weights = [node("Mul", "raw", "w", out="scaled")], [tensor]
    if where == "constant":
        nodes, weights = [node("Constant", out="w", value=tensor), *nodes], []
    model = with_tail(*([] if branch else nodes), node("Identity", "raw" if branch else "scaled"))
    if branch:
        scaled = [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, None)]
        inner = helper.make_graph(nodes, "inner", [], scaled, weights)
        yes = numpy_helper.from_array(np.array(True), "yes")
        model = with_tail(node("If", "yes", then_branch=inner, else_branch=inner))
        model.graph.initializer.append(yes)
    else:
        model.graph.initializer.extend(weights)
    # Whether the file is there, beside the model or where the process stands, may not make a difference.
    refuses(model, "keeps weights in other files, which may lie anywhere: save it as one file")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for folder in (tmp_path, tmp_path / "cwd"):
        (folder / "weights.bin").write_bytes(values)
    refuses(model, "keeps weights in other files, which may lie anywhere: save it as one file")


def test_an_output_that_is_no_row_per_crop_is_refused(refuses):
    def pooled(graph: onnx.GraphProto) -> None:
        graph.node[-2].op_type, graph.node[-2].output[0] = "Identity", "feature"
        del graph.node[-1]

    refuses(
        declare(foreign_model(edit=pooled), "N", 16, 4, 2), r"output 'feature' must be \(N, dim\), got \(N, 16, 4, 2\)"
    )
    flat = with_tail(node("Reshape", "raw", "all"), weights={"all": np.array([-1])})
    refuses(declare(flat, "M"), r"output 'feature' must be \(N, dim\), got \(M\)")


def test_an_output_that_is_not_what_it_was_declared_to_be_is_refused(refuses):
    lying = with_tail(node("Unsqueeze", "raw", "axes"), weights={"axes": np.array([2, 3])})
    refuses(lying, r"the output must be float32 \(N, dim\), got float32 \(2, 24, 1, 1\) for 2 crops")


@pytest.mark.parametrize(("kept", "got"), [([1, 0, 0, 0], r"\(48,\)"), ([1, 1, 1, 1], r"\(2, 24, 1, 1\)")])
def test_an_output_whose_rank_only_running_shows_is_refused(refuses, kept: list[int], got: str):
    sizes, mask = np.array([-1, DIM, 1, 1]), np.array(kept, bool)
    model = with_tail(
        node("Compress", "sizes", "mask", out="shape", axis=0),
        node("Reshape", "raw", "shape"),
        weights={"sizes": sizes, "mask": mask},
    )
    refuses(model, rf"the output must be float32 \(N, dim\), got float32 {got} for 2 crops")


def test_an_output_of_another_type_is_refused(refuses):
    for kind, name in ((TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "float64"), (TensorProto.INT64, "int64")):
        model = declare(with_tail(node("Cast", "raw", to=kind)), "N", DIM, kind=kind)
        refuses(model, rf"the output must be float32 \(N, dim\), got {name} \(2, 24\) for 2 crops")


def test_a_dimension_that_follows_the_batch_is_refused(refuses):
    gram = with_tail(node("Transpose", "raw", out="turned"), node("MatMul", "raw", "turned"))
    refuses(declare(gram, "N", "M"), "dim")


def test_a_model_that_gives_no_numbers_is_refused(refuses):
    refuses(with_tail(node("Log", "raw")), "gives NaN or infinity for a plain grey crop: are its weights whole")
    infinite = np.full((DIM, DIM), np.inf, np.float32)
    refuses(with_tail(node("MatMul", "raw", "w", out="feature"), weights={"w": infinite}), "NaN or infinity")


def test_a_model_that_gives_no_direction_is_refused(refuses):
    refuses(with_tail(node("Sub", "raw", "raw")), "no unit vector for 8 of 8 images")


def test_a_fixed_batch_is_refused(refuses):
    refuses(
        foreign_model(shape=(4, 3, HEIGHT, WIDTH)),
        "input 'pixels' has its batch fixed at 4: export with a dynamic batch",
    )
    for count, fails_on in ((1, 2), (4, 2), (2, 3)):
        # The declared batch is free, but the graph inside is not.
        model = with_tail(node("Reshape", "raw", "shape"), weights={"shape": np.array([count, DIM])})
        refuses(model, rf"does not run on {fails_on} crops \(is its batch fixed\?\)")
    merging = with_tail(node("Reshape", "raw", "shape"), weights={"shape": np.array([1, -1])})
    refuses(declare(merging, "N", "D"), r"the output must be float32 \(N, dim\), got float32 \(1, 48\) for 2 crops")


def test_of_several_outputs_one_must_be_named(tmp_path: Path, small: Path, out: Path, refuses):
    model = foreign_model()
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 128]))
    refuses(model, "the graph has the outputs feature, f: name the embedding with --output")
    refuses(model, "the graph has no output 'embedding', it has feature, f", output="embedding")
    both = save_onnx(model, tmp_path / "both.onnx")
    assert adopt(both, out / "f", FEEDING, output="f").contract.dim == 128
    made = adopt(both, out / "feature", FEEDING, output="feature")
    assert made.contract.identity == adopt(small, out / "small", FEEDING).contract.identity


def test_another_input_is_refused(refuses):
    for kind, name in ((TensorProto.INT64, "INT64"), (TensorProto.FLOAT16, "FLOAT16"), (TensorProto.UINT8, "UINT8")):
        model = foreign_model()
        model.graph.input[0].type.tensor_type.elem_type = kind
        refuses(model, f"input 'pixels' must be float32, got {name}")
    two = foreign_model()
    two.graph.input.append(helper.make_tensor_value_info("camid", TensorProto.FLOAT, ["N", 1]))
    refuses(two, "one input was expected, the graph has pixels, camid")


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        (("N", 3, WIDTH, HEIGHT), "(N, 3, 32, 64)"),
        (("N", 3, 256, 128), "(N, 3, 256, 128)"),
        (("N", HEIGHT, WIDTH, 3), "(N, 64, 32, 3)"),
        (("N", 1, HEIGHT, WIDTH), "(N, 1, 64, 32)"),
        (("N", 3, HEIGHT), "(N, 3, 64)"),
    ],
)
def test_an_input_of_another_size_is_refused(refuses, shape, got: str):
    refuses(
        foreign_model(shape=shape), re.escape(f"input 'pixels' must be (N, 3, 64, 32), got {got}: is --size right?")
    )


def test_a_size_that_the_graph_does_not_run_on_is_refused(refuses):
    feeding = Feeding(height=HEIGHT, width=3, resize="bilinear", preprocessing=IMAGENET)
    refuses(foreign_model(shape=("N", 3, "H", "W")), "the graph does not run on 2 crops", feeding)


def custom(graph: onnx.GraphProto) -> None:
    graph.node[1].op_type, graph.node[1].domain = "Gelu", "com.microsoft"


def custom_in_a_branch(graph: onnx.GraphProto) -> None:
    branching(graph)
    inner = graph.node[-1].attribute[0].g.node[0]
    inner.op_type, inner.domain = "Gelu", "com.microsoft"


@pytest.mark.parametrize("edit", [custom, custom_in_a_branch])
def test_operators_of_one_engine_are_refused(refuses, edit):
    model = foreign_model(edit=edit)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    refuses(model, r"uses operators outside the ONNX standard \(com.microsoft.Gelu\)")


def test_local_functions_are_refused(refuses):
    model = foreign_model()
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Twice", ["x"], ["y"], [node("Add", "x", "x", out="y")], opsets)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    refuses(model, r"uses operators outside the ONNX standard \(local functions\)")


def test_operator_sets_that_are_too_old_or_too_new_are_refused(refuses):
    refuses(pooling_model(9, 4), "has opset 9, at least 11 was expected: export it again")
    refuses(pooling_model(10, 5), "has opset 10, at least 11 was expected")
    refuses(pooling_model(99, 8), "ONNX Runtime does not take the graph")


@pytest.mark.parametrize("part", [1.0, 0.5, 1e-3])
def test_a_model_that_mixes_the_images_of_a_batch_is_refused(refuses, part: float):
    model = with_tail(
        node("ReduceMean", "raw", out="mean", axes=[0], keepdims=1),
        node("Mul", "mean", "part", out="shift"),
        node("Sub", "raw", "shift"),
        weights={"part": np.array(part, np.float32)},
    )
    refuses(model, r"an image's embedding depends on its batch")


def train(graph: onnx.GraphProto) -> None:
    """Normalise by the batch, as a model does that was exported without `eval()`."""
    weights = {"scale": 1, "shift": 0, "mean": 0, "var": 1}
    graph.initializer.extend(numpy_helper.from_array(np.full(8, by, np.float32), name) for name, by in weights.items())
    normalise = node("BatchNormalization", "c1", *weights, out="bn", training_mode=1)
    normalise.output.extend(["running_mean", "running_var"])
    graph.node.insert(1, normalise)
    graph.node[2].input[0] = "bn"


def test_a_model_in_training_mode_is_refused(refuses):
    # ONNX Runtime keeps the running statistics between calls, so the comparison may see it first.
    refuses(foreign_model(edit=train), r"depends on its batch|the written graph differs from the model by")


def test_a_model_with_chance_in_it_is_refused(refuses):
    noise = with_tail(node("RandomNormalLike", "raw", out="noise"), node("Add", "raw", "noise"))
    refuses(noise, "the written graph differs from the model by")


def test_an_artifact_is_replaced_only_by_force(small: Path, tmp_path: Path, out: Path):
    old = adopt(small, out, FEEDING).contract.identity
    before = contents(out)
    other = save_onnx(foreign_model(seed=1), tmp_path / "other.onnx")
    with pytest.raises(
        OutputExistsError, match=f"{out} holds a model already: choose another --out, or replace it with"
    ):
        adopt(other, out, FEEDING)
    assert contents(out) == before
    new = adopt(other, out, FEEDING, force=True).contract.identity
    assert new != old
    assert open_embedder(out).contract.identity == new
    assert list(out.parent.iterdir()) == [out]


def test_what_is_no_artifact_is_never_replaced(small: Path, out: Path):
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    note = out.with_name("note.txt")
    note.write_text("a note")
    for path in (out, note):
        for force in (False, True):
            with pytest.raises(
                OutputExistsError, match=f"{path} is there already and is no model: choose another --out"
            ):
                adopt(small, path, FEEDING, force=force)
    assert contents(out.parent) == {"model/thesis.tex": b"years of work", "note.txt": b"a note"}


def test_force_never_deletes_what_is_not_the_models(small: Path, out: Path):
    adopt(small, out, FEEDING)
    (out / "thesis.tex").write_text("years of work")
    before = contents(out)
    with pytest.raises(OutputExistsError, match=r"which replacing it would delete \(thesis.tex\)"):
        adopt(small, out, FEEDING, force=True)
    assert contents(out) == before


def test_an_empty_folder_and_missing_parents_are_accepted(small: Path, out: Path):
    out.mkdir()
    deep = out.parent / "a" / "b" / "model"
    for path in (out, deep):
        made = adopt(small, path, FEEDING)
        assert read_artifact(path).contract == made.contract


def test_a_failure_takes_the_parents_it_made_with_it(tmp_path: Path):
    model = with_tail(node("ReduceMean", "raw", out="mean", axes=[0], keepdims=1), node("Sub", "raw", "mean"))
    with pytest.raises(ExportError, match="depends on its batch"):
        adopt(save_onnx(model, tmp_path / "mixing.onnx"), tmp_path / "a" / "b" / "model", FEEDING)
    assert [path.name for path in tmp_path.iterdir()] == ["mixing.onnx"]


@pytest.mark.parametrize("fault", ["text", "batch", "chance"])
def test_a_forced_adoption_that_fails_leaves_the_old_artifact_whole(small: Path, tmp_path: Path, out: Path, fault: str):
    adopt(small, out, FEEDING)
    before = contents(out)
    wrong = tmp_path / "wrong.onnx"
    if fault == "text":
        wrong.write_text("no model")
    elif fault == "batch":
        mean = node("ReduceMean", "raw", out="mean", axes=[0], keepdims=1)
        save_onnx(with_tail(mean, node("Add", "raw", "mean")), wrong)
    else:
        save_onnx(with_tail(node("RandomNormalLike", "raw", out="noise"), node("Add", "raw", "noise")), wrong)
    with pytest.raises(ExportError):
        adopt(wrong, out, FEEDING, force=True)
    assert contents(out) == before
    assert open_embedder(out).contract.dim == DIM
    assert list(out.parent.iterdir()) == [out]


def test_a_link_to_an_artifact_is_replaced_or_refused_but_never_left_between(small: Path, tmp_path: Path, out: Path):
    adopt(small, out, FEEDING)
    link = out.with_name("current")
    link.symlink_to("model", target_is_directory=True)
    other = save_onnx(foreign_model(seed=1), tmp_path / "other.onnx")
    try:
        expected = adopt(other, link, FEEDING, force=True).contract
    except ReidError:
        expected = read_artifact(out).contract
    assert read_artifact(link).contract == expected
    assert sorted(out.parent.iterdir()) == [link, out]


def test_an_adopted_graph_can_average_a_crop_and_its_mirror_image(small: Path, out: Path):
    made = adopt(small, out, FEEDING, flip=True)
    assert made.difference < 1e-6
    assert made.before == made.after
    assert made.contract.network == Network(flip=True)
    batch = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    mirrored = np.ascontiguousarray(batch[:, :, ::-1])
    averaged = open_embedder(out).embed(batch)
    adopt(small, out, FEEDING, force=True)
    total = open_embedder(out).embed(batch) + open_embedder(out).embed(mirrored)
    np.testing.assert_allclose(averaged, total / np.linalg.norm(total, axis=1, keepdims=True), rtol=0, atol=1e-6)
    assert np.abs(averaged - open_embedder(out).embed(batch)).max() > 1e-3
