import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.datasets import read_attribute, wrong_attributes
from reidserve.datasets.attributes import MAX_ATTRIBUTE_INTEGER, MAX_ATTRIBUTE_TEXT, MAX_ATTRIBUTES


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("7.0", 7.0),
        ("7.", 7.0),
        (".5", 0.5),
        ("0.25", 0.25),
        ("1e3", 1000.0),
        ("-1.5E-3", -0.0015),
        ("9007199254740992", MAX_ATTRIBUTE_INTEGER),
    ],
)
def test_booleans_and_numbers_are_read_as_what_they_are(text: str, value: float):
    assert read_attribute(text) == value
    assert type(read_attribute(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "red",
        "True",
        "1,5",
        "1 ",
        "nan",
        "inf",
        "1e999",
        "0x10",
        "1_000",
        "",
        "-",
        ".",
        "e5",
        "٣",
        "²",
        '"',
        "0017",
        "00.5",
        "9007199254740993",
        "12345678901234567890",
        "1" * 5000,
    ],
)
def test_what_no_number_would_keep_is_text(text: str):
    assert read_attribute(text) == text


@pytest.mark.parametrize(("text", "value"), [('"7"', "7"), ('"true"', "true"), ('""', ""), ('""x""', '"x"')])
def test_double_quotes_make_text(text: str, value: str):
    assert read_attribute(text) == value


@settings(deadline=None)
@given(st.text() | st.from_regex(r"[+-]?[0-9.eE+-]{1,400}", fullmatch=True))
def test_whatever_is_read_is_an_attribute(text: str):
    value = read_attribute(text)
    assert wrong_attributes({"name": value}) is None
    if not isinstance(value, str | bool):
        assert value == float(text)


@settings(deadline=None)
@given(st.integers(-MAX_ATTRIBUTE_INTEGER, MAX_ATTRIBUTE_INTEGER) | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_back(value: float):
    assert read_attribute(str(value)) == value
    assert type(read_attribute(str(value))) is type(value)


@pytest.mark.parametrize("name", ["", "a b", "9x", "a-b", "é", "id", "pid", "and", "true", "a" * 65, "a\n", 7, None])
def test_a_name_that_is_no_word_or_a_fields_is_wrong(name):
    assert wrong_attributes({name: 1}) == (
        f"an attribute's name must be a word of letters, digits and _ that is not a field's, got {name!r}"
    )


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (math.nan, "'nan'"),
        (-math.inf, "'-inf'"),
        (2**53 + 1, "'9007199254740993'"),
        pytest.param(-(10**5000), "an integer of more than 256 bits", id="long"),
        (None, "'None'"),
        ([1], "'[1]'"),
        (b"x", "\"b'x'\""),
        ("\ud800", r"'\ud800'"),
        ("x" * (MAX_ATTRIBUTE_TEXT + 1), repr("x" * 80)),
    ],
)
def test_a_value_that_cannot_be_kept_is_wrong(value, got: str):
    assert wrong_attributes({"colour": value}) == (
        "attribute colour must be text (up to 4096 characters), a finite number, an integer up to 2**53 or a boolean, "
        f"got {got}"
    )


def test_as_many_attributes_as_allowed_and_one_more():
    attributes = {f"a{number}": number for number in range(MAX_ATTRIBUTES)}
    assert wrong_attributes(attributes) is None
    assert wrong_attributes(attributes | {"more": 1}) == "may have 64 attributes, got 65"
