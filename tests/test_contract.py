import hashlib
import json
from typing import Any

import pytest

from reidserve.embed.contract import (
    MAX_SIDE,
    Contract,
    Network,
    Preprocessing,
    Source,
    decode_contract,
    encode_contract,
)
from reidserve.errors import ArtifactError

FACTS: dict[str, Any] = {
    "format": 1,
    "height": 256,
    "width": 128,
    "resize": "bilinear",
    "dim": 512,
    "preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "colour": "rgb"},
    "network": {"backbone": None, "neck": None, "pooling": None, "feature": None, "flip": False},
    "source": {"kind": "onnx", "sha256": "ab" * 32, "dialect": None},
    "files": {"model.onnx": "cd" * 32, "canaries.json": "ef" * 32},
    "flavours": {},
    "plans": {},
}
HALF: dict[str, Any] = {
    "files": {**FACTS["files"], "model.fp16.onnx": "0" * 64},
    "flavours": {"model.fp16.onnx": {"precision": "fp16", "kept": ["a"], "unverified": True}},
}
CONTRACT = Contract(
    height=256,
    width=128,
    resize="bilinear",
    dim=512,
    preprocessing=Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), colour="rgb"),
    network=Network(),
    source=Source(kind="onnx", sha256="ab" * 32),
    files={"model.onnx": "cd" * 32, "canaries.json": "ef" * 32},
)


def decoded(*path: str, **changes: object) -> Contract:
    """The contract of FACTS with fields changed, at the top or in the struct that `path` names."""
    facts = json.loads(json.dumps(FACTS))
    inner = facts
    for name in path:
        inner = inner[name]
    inner.update(changes)
    return decode_contract(json.dumps(facts).encode())


def test_the_identity_is_the_sha256_of_four_facts():
    text = '{"height":256,"model":"' + "cd" * 32 + '","resize":"bilinear","width":128}'
    assert CONTRACT.identity == hashlib.sha256(text.encode()).hexdigest()
    # Galleries on disk hold identities: this one must never change.
    assert CONTRACT.identity == "3a8fac310adba63971a9658d2470cc430f2120ecaf692411ee421aaacfd5747a"


@pytest.mark.parametrize(
    "change", [{"height": 257}, {"width": 129}, {"resize": "bicubic"}, {"files": {"model.onnx": "0" * 64}}]
)
def test_each_of_the_four_facts_changes_the_identity(change):
    assert decoded(**change).identity != CONTRACT.identity


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ((), {"dim": 2048}),
        ((), HALF),
        (("files",), {"canaries.json": "0" * 64}),
        (("files",), {"notes.txt": "0" * 64}),
        (("preprocessing",), {"mean": [0, 0, 0], "std": [1, 1, 1], "colour": "bgr"}),
        (("network",), {"backbone": "resnet50", "neck": "bnneck", "feature": "after_neck", "flip": True}),
        (("source",), {"kind": "checkpoint", "sha256": "0" * 64, "dialect": "fast-reid"}),
    ],
)
def test_nothing_else_changes_the_identity(path, change):
    contract = decoded(*path, **change)
    assert contract != CONTRACT
    assert contract.identity == CONTRACT.identity


def test_a_flavour_must_be_a_file_and_be_known_whole():
    assert decoded(**HALF).flavours["model.fp16.onnx"].kept == ("a",)
    with pytest.raises(ArtifactError, match=r"must be among the files, model.fp16.onnx is not"):
        decoded(flavours=HALF["flavours"])
    for wrong in ({"precision": "fp32"}, {"precision": "fp16", "verified": True}, {}):
        with pytest.raises(ArtifactError, match="does not read"):
            decoded(files=HALF["files"], flavours={"model.fp16.onnx": wrong})


def test_a_contract_of_before_there_were_flavours_is_read():
    older = {name: fact for name, fact in FACTS.items() if name not in ("flavours", "plans")}
    assert decode_contract(json.dumps(older).encode()) == CONTRACT


def test_a_contract_comes_back_from_its_bytes():
    assert decode_contract(encode_contract(CONTRACT)) == CONTRACT
    assert json.loads(encode_contract(CONTRACT)) == FACTS
    assert decode_contract(json.dumps(FACTS).encode()) == CONTRACT


def test_equal_contracts_are_equal_bytes_for_people_to_read():
    assert encode_contract(decoded()) == encode_contract(CONTRACT)
    assert encode_contract(CONTRACT).decode() == json.dumps(FACTS, indent=2, sort_keys=True) + "\n"
    backwards = decoded(files=dict(reversed(FACTS["files"].items())))
    assert list(backwards.files) != list(CONTRACT.files)
    assert encode_contract(backwards) == encode_contract(CONTRACT)


def test_the_defaults_may_be_left_out():
    assert decoded(network={}, source={"kind": "onnx", "sha256": "ab" * 32}) == CONTRACT


@pytest.mark.parametrize("name", sorted(set(FACTS) - {"format", "flavours", "plans"}))
def test_a_missing_field_is_refused(name: str):
    facts = {key: value for key, value in FACTS.items() if key != name}
    with pytest.raises(ArtifactError, match=f"the contract does not read: .*missing required field `{name}`"):
        decode_contract(json.dumps(facts).encode())


@pytest.mark.parametrize("path", [(), ("preprocessing",), ("network",), ("source",)])
def test_a_field_too_many_is_refused(path):
    with pytest.raises(ArtifactError, match=r"the contract does not read: .*unknown field `colour_space`"):
        decoded(*path, colour_space="srgb")


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ((), {"format": 2}),
        ((), {"format": "1"}),
        ((), {"height": "256"}),
        ((), {"height": 256.5}),
        ((), {"width": True}),
        ((), {"width": None}),
        ((), {"resize": "box"}),
        ((), {"resize": "BILINEAR"}),
        ((), {"dim": "512"}),
        ((), {"files": ["model.onnx"]}),
        ((), {"files": {"model.onnx": 7}}),
        (("preprocessing",), {"mean": [0.5, 0.5]}),
        (("preprocessing",), {"colour": "grb"}),
        (("preprocessing",), {"std": ["1", "1", "1"]}),
        (("network",), {"feature": "neck"}),
        (("network",), {"flip": 1}),
        (("source",), {"kind": "keras"}),
    ],
)
def test_a_value_of_another_type_is_refused(path, change):
    with pytest.raises(ArtifactError, match="the contract does not read: "):
        decoded(*path, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height must be 1 to 4096 pixels, got 0"),
        ({"height": MAX_SIDE + 1}, "height must be 1 to 4096 pixels, got 4097"),
        ({"width": -128}, "width must be 1 to 4096 pixels, got -128"),
        ({"dim": 0}, "dim must be 1 to 1048576, got 0"),
        ({"files": {}}, r"files must name model.onnx, got \[\]"),
        ({"files": {"other.onnx": "ab"}}, r"files must name model.onnx, got \['other.onnx'\]"),
    ],
)
def test_a_value_out_of_range_is_refused_read_or_made(change, message: str):
    with pytest.raises(ArtifactError, match=message):
        decoded(**change)
    facts = {name: getattr(CONTRACT, name) for name in CONTRACT.__struct_fields__}
    with pytest.raises(ArtifactError, match=message):
        Contract(**(facts | change))


def test_a_filter_that_pillow_does_not_have_is_refused():
    facts = {name: getattr(CONTRACT, name) for name in CONTRACT.__struct_fields__}
    with pytest.raises(ArtifactError, match="resize must be one of nearest, bilinear, bicubic, lanczos, got 'box'"):
        Contract(**(facts | {"resize": "box"}))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"{} {}", b"height: 256", b'{"height": NaN}'])
def test_what_is_no_contract_is_refused(data: bytes):
    with pytest.raises(ArtifactError, match="the contract does not read: "):
        decode_contract(data)
