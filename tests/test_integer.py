from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from reidserve.datasets import JUNK, Crop
from reidserve.embed import Embeddings
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import ExportError
from reidserve.export.flavours import (
    Ranges,
    decode_ranges,
    encode_ranges,
    make_integer,
    measure_ranges,
    pick_calibration,
)
from tests.flavours import (
    draw_batch,
    embed,
    made_by,
    resnet_graph,
    scale_weights,
    small_graph,
    value_of,
    worst_cosine,
)

CALIBRATION, BATCH = draw_batch(range(100, 124)), draw_batch(range(8))
BOTH = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    return measure_ranges(resnet_graph(), [CALIBRATION])


@pytest.fixture(scope="module")
def reference() -> Embeddings:
    return embed(resnet_graph(), BATCH)


def dequantised(graph: onnx.ModelProto, name: str) -> np.ndarray:
    """The values of integer weights, by the formula of DequantizeLinear."""
    node = made_by(graph)[name]
    integers, scale, zero = (value_of(graph, part) for part in node.input)
    axis = next(entry.i for entry in node.attribute if entry.name == "axis")
    shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
    return (integers.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape)


@BOTH
def test_embeddings_are_close_to_those_of_float32_from_a_quarter_of_the_bytes(signed, ranges, reference):
    integer = make_integer(resnet_graph(), ranges, signed=signed)
    onnx.checker.check_model(integer, full_check=True)
    assert worst_cosine(reference, embed(integer, BATCH)) > 0.999
    assert integer.ByteSize() < 0.26 * resnet_graph().ByteSize()


@BOTH
def test_ranges_that_are_too_narrow_would_show(signed, ranges, reference):
    narrow = msgspec.structs.replace(
        ranges, tensors={name: (low / 3, high / 3) for name, (low, high) in ranges.tensors.items()}
    )
    integer = make_integer(resnet_graph(), narrow, signed=signed)
    assert worst_cosine(reference, embed(integer, BATCH)) < 0.99  # where .999 is asked above


def test_onnx_runtime_computes_every_convolution_and_sum_in_integers(ranges, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    integer = make_integer(resnet_graph(), ranges, signed=False)
    onnxruntime.InferenceSession(integer.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (ran["QLinearConv"], ran["Conv"]) == (20, 0)
    # Beside the pixels' shift and the neck's there is no sum in floating point.
    assert (ran["QLinearAdd"], ran["Add"]) == (8, 2)
    # The pixels go in once, and each of six IBNs leaves the integers for its InstanceNorm and comes back.
    assert (ran["QuantizeLinear"], ran["DequantizeLinear"]) == (7, 7)


@BOTH
def test_openvino_computes_every_convolution_in_integers(signed, ranges, reference):
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    core = openvino.Core()
    integer = make_integer(resnet_graph(), ranges, signed=signed)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(integer.SerializeToString(), b""), "CPU", settings)
    ran = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops()]
    kinds = Counter(
        facts["runtimePrecision"].astype(str) for facts in ran if facts["layerType"].astype(str) == "Convolution"
    )
    assert kinds == {"i8" if signed else "u8": 20}
    assert worst_cosine(reference, compiled(BATCH)[0]) > 0.999


@BOTH
def test_weights_are_within_half_a_step_channel_by_channel(signed, ranges):
    graph = resnet_graph()
    integer = make_integer(graph, ranges, signed=signed)
    plain = made_by(graph)
    convolutions = [node for node in integer.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for node in convolutions:
        weights = value_of(graph, plain[node.output[0]].input[1])
        integers, scale, zero = (value_of(integer, part) for part in made_by(integer)[node.input[1]].input)
        assert integers.dtype == zero.dtype == np.int8
        assert len(scale) == len(weights)
        assert not zero.any()
        np.testing.assert_allclose(np.abs(integers).max((1, 2, 3)), 127)  # each channel uses all there is
        error = np.abs(dequantised(integer, node.input[1]) - weights).max((1, 2, 3))
        assert (error <= scale * 0.5001).all()


def test_biases_count_in_steps_of_what_enters_times_the_weights(ranges):
    graph = resnet_graph()
    integer = make_integer(graph, ranges, signed=False)
    givers, plain = made_by(integer), made_by(graph)
    biased = [node for node in integer.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    assert biased
    for node in biased:
        steps = [value_of(integer, givers[name].input[1]) for name in node.input]
        np.testing.assert_allclose(steps[2], steps[0] * steps[1], rtol=1e-6)
        bias = value_of(graph, plain[node.output[0]].input[2])
        assert (np.abs(dequantised(integer, node.input[2]) - bias) <= steps[2] * 0.51).all()


def test_a_bias_that_dwarfs_its_weights_does_not_leave_int32():
    def dwarf(graph: onnx.GraphProto) -> None:
        scale_weights(graph, "w1", [1e-9], axis=0)
        scale_weights(graph, "b1", [1e3], axis=0)

    graph = small_graph(edit=dwarf)
    integer = make_integer(graph, measure_ranges(graph, [CALIBRATION]), signed=False)
    (node,) = (node for node in integer.graph.node if "backbone/b1" in node.output[0] or "backbone/c1" in node.output)
    bias = value_of(graph, "backbone/b1")
    np.testing.assert_allclose(dequantised(integer, node.input[2]), bias, rtol=1e-3, atol=1e-3)
    assert worst_cosine(embed(graph, BATCH), embed(integer, BATCH)) > 0.99


def test_unsigned_zero_is_exact_and_signed_zero_is_in_the_middle(ranges):
    for signed, kind in ((False, np.uint8), (True, np.int8)):
        integer = make_integer(resnet_graph(), ranges, signed=signed)
        quantised = [node for node in integer.graph.node if node.op_type == "QuantizeLinear"]
        assert quantised
        for node in quantised:
            scale, zero = (value_of(integer, name) for name in node.input[1:])
            assert zero.dtype == kind
            assert not signed or zero == 0
            if "MaxPool" not in node.input[0]:
                low, high = ranges.tensors[node.input[0]]
                least, most = (scale * (end - float(zero)) for end in ((-127, 127) if signed else (0, 255)))
                assert least <= low + scale
                assert most >= high - scale


def test_signed_leaves_a_convolutions_output_to_be_fused_and_its_bias_float(ranges):
    integer = make_integer(resnet_graph(), ranges, signed=True)
    givers = made_by(integer)
    quantised = {node.input[0] for node in integer.graph.node if node.op_type == "QuantizeLinear"}
    sums = [node for node in integer.graph.node if node.op_type == "Add" and "layer" in node.output[0]]
    assert len(sums) == 8
    for node in sums:
        assert sorted(givers[name].op_type for name in node.input) == ["Conv", "DequantizeLinear"]
    biases = [node.input[2] for node in integer.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    assert {value_of(integer, name).dtype for name in biases} == {np.dtype(np.float32)}
    # Three shortcuts are convolutions too: what enters the sum from there is quantised.
    assert sum(givers[name].op_type == "Conv" for name in quantised) == 3


@BOTH
def test_pixels_instance_norm_and_length_are_as_they_were(signed, ranges):
    graph = resnet_graph()
    integer = make_integer(graph, ranges, signed=signed)
    givers, plain = made_by(integer), made_by(graph)
    pixels, length = ("levels", "rgb", "pixels/scaled", "pixels"), ("norm", "divisor", "embeddings")
    assert all(givers[name] == plain[name] for name in (*pixels, *length))
    statistics = [node for node in integer.graph.node if node.op_type == "InstanceNormalization"]
    assert len(statistics) == 6
    assert all(node == plain[node.output[0]] for node in statistics)


@BOTH
def test_kept_operators_have_their_own_weights(signed, ranges, reference):
    graph = resnet_graph()
    convolutions = [node.output[0] for node in graph.graph.node if node.op_type == "Conv"]
    integer = make_integer(graph, ranges, signed=signed, kept=convolutions[:2])
    for name in convolutions:
        weights = made_by(integer)[name].input[1]
        assert (weights == made_by(graph)[name].input[1]) == (name in convolutions[:2])
    sums = [node.output[0] for node in graph.graph.node if node.op_type == "Add"]
    whole = make_integer(graph, ranges, signed=signed, kept=[*convolutions, *sums])
    np.testing.assert_array_equal(embed(whole, BATCH), reference)


def test_integers_do_not_depend_on_the_batch(ranges):
    session = OnnxSession(make_integer(resnet_graph(), ranges, signed=False).SerializeToString())
    together = session(BATCH)
    alone = np.concatenate([session(crop[np.newaxis]) for crop in BATCH])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("opset", [11, 13, 17])
@BOTH
def test_older_opsets_have_an_integer_flavour_too(signed, opset):
    graph = small_graph(opset=opset)
    integer = make_integer(graph, measure_ranges(graph, [CALIBRATION]), signed=signed)
    onnx.checker.check_model(integer, full_check=True)
    assert worst_cosine(embed(graph, BATCH), embed(integer, BATCH)) > 0.995


def test_ranges_are_the_extremes_that_the_plain_evaluator_sees():
    graph = small_graph()
    ranges = measure_ranges(graph, [CALIBRATION[:3], CALIBRATION[3:4]])
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in ranges.tensors)
    for value in watched.graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    seen = ReferenceEvaluator(watched).run(list(ranges.tensors), {"crops": CALIBRATION[:4]})
    expected = {name: (values.min(), values.max()) for name, values in zip(ranges.tensors, seen, strict=True)}
    assert {"pixels", "backbone/c1", "backbone/r2", "backbone/feature"} <= set(expected)
    for name, ends in ranges.tensors.items():
        np.testing.assert_allclose(ends, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_equal_crops_give_equal_bytes_however_they_are_batched():
    graph = small_graph()
    one = measure_ranges(graph, [CALIBRATION], seed=3)
    other = measure_ranges(graph, [CALIBRATION[:5], CALIBRATION[5:]], seed=3)
    assert encode_ranges(one) == encode_ranges(other)
    assert (one.count, one.seed, one.method) == (24, 3, "extremes")
    made = [make_integer(graph, part, signed=False).SerializeToString(deterministic=True) for part in (one, other)]
    assert made[0] == made[1]
    assert measure_ranges(graph, [CALIBRATION[::-1]], seed=3).images != one.images


def test_ranges_are_read_as_they_were_written_and_for_their_graph_alone():
    graph = small_graph()
    ranges = measure_ranges(graph, [CALIBRATION[:2]])
    data = encode_ranges(ranges)
    assert decode_ranges(data, graph) == ranges
    other = small_graph(edit=lambda graph: scale_weights(graph, "w3", [1.001], axis=0))
    for refused in (lambda: decode_ranges(data, other), lambda: make_integer(other, ranges, signed=False)):
        with pytest.raises(ExportError, match="measured on the graph .*calibrate again"):
            refused()
    with pytest.raises(ExportError, match="do not read"):
        decode_ranges(data.replace(b'"count"', b'"counted"'), graph)


def test_nothing_to_calibrate_with_is_refused():
    with pytest.raises(ExportError, match="no crops"):
        measure_ranges(small_graph(), [])


def test_a_tensor_that_is_not_finite_is_refused_by_name():
    graph = small_graph(edit=lambda graph: scale_weights(graph, "w2", [3e38], axis=0))
    with pytest.raises(ExportError, match="backbone/c2 is not finite"):
        measure_ranges(graph, [CALIBRATION[:1]])


def test_an_operator_to_keep_that_is_not_there_is_refused():
    graph = small_graph()
    with pytest.raises(ExportError, match="no operator c1 to keep"):
        make_integer(graph, measure_ranges(graph, [CALIBRATION[:1]]), signed=False, kept=["c1"])


def training_split() -> list[Crop]:
    """30 identities: one camera has most of the crops, identity 1 most of them."""
    return [
        Crop(Path(f"{pid}/{camid}/{frame}"), pid=str(pid), camid=camid)
        for pid in range(1, 31)
        for camid, frames in (("a", 6), ("b", 2), ("c", 1))
        for frame in range(frames * (20 if pid == 1 else 1))
    ]


def test_crops_to_calibrate_with_are_spread_over_identities_and_cameras():
    split = training_split()
    drawn = pick_calibration(split, 30, seed=5)
    assert Counter(crop.pid for crop in drawn) == dict.fromkeys((str(pid) for pid in range(1, 31)), 1)
    two = pick_calibration(split, 60, seed=5)
    assert two[:30] == drawn
    assert set(Counter(crop.pid for crop in two).values()) == {2}
    assert all(len({crop.camid for crop in two if crop.pid == str(pid)}) == 2 for pid in range(1, 31))
    assert len(set(two)) == 60
    # The cameras take turns while they last.
    few = Counter(crop.camid for crop in pick_calibration(split, 6, seed=5))
    assert set(few.values()) == {2}


def test_the_seed_decides_what_is_drawn_and_nothing_else_does():
    split = training_split()
    assert pick_calibration(split, 20, seed=1) == pick_calibration(split, 20, seed=1)
    assert pick_calibration(split, 20, seed=1) != pick_calibration(split, 20, seed=2)
    assert sorted(crop.path for crop in pick_calibration(split, 10**6)) == sorted(crop.path for crop in split)


def test_junk_is_not_drawn_and_a_crop_without_a_pid_is_an_identity_of_its_own():
    plain = [Crop(Path(str(number))) for number in range(5)]
    junk = [Crop(Path("junk"), pid=JUNK, camid="a")]
    assert len(pick_calibration([*plain, *junk], 9)) == 5
    with pytest.raises(ExportError, match="no crop to calibrate with among 1"):
        pick_calibration(junk, 1)
    with pytest.raises(ExportError, match="at least one crop"):
        pick_calibration(plain, 0)
