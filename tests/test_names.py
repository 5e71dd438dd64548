import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reidserve.datasets import path_to_text, text_to_path

# "%", hexadecimal digits, bytes that are no UTF-8, and pieces of real UTF-8: where an encoding could go wrong.
TRICKY = [b"%", b"F", b"f", b"2", b"5", b"\xff", b"\x80", b"\xc3", b"\xc3\xa4", b"\xed\xb2\x80", b"/", b".", b" ", b"a"]
PATHS = st.one_of(
    st.lists(st.sampled_from(TRICKY), max_size=12).map(b"".join),
    st.binary(max_size=24).map(lambda raw: raw.replace(b"\0", b"")),
).map(lambda raw: Path(os.fsdecode(raw)))


@pytest.mark.parametrize(
    "name",
    [
        "0002_c1s1_000451_03.jpg",
        "Größe.png",
        "车辆/001.jpg",
        "100%.jpg",
        "50% off.jpg",
        "%.png",
        "%zz",
        "a b+c?d#e.jpg",
    ],
)
def test_an_ordinary_name_stays_as_it_is(name: str):
    assert path_to_text(Path(name)) == name
    assert text_to_path(name) == Path(name)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\xff.jpg", "%FF.jpg"),
        (b"Gr\xf6\xdfe.png", "Gr%F6%DFe.png"),
        (b"%FF.jpg", "%25FF.jpg"),
        (b"%ff.jpg", "%25ff.jpg"),
        (b"%25.jpg", "%2525.jpg"),
        (b"%\xff", "%%FF"),
        (b"%%41", "%%2541"),
        (b"\xed\xb2\x80", "%ED%B2%80"),
        ("ä".encode() + b"\x80/\xc3", "ä%80/%C3"),
    ],
)
def test_a_byte_that_is_not_utf8_becomes_a_percent_code_and_what_looks_like_one_is_kept_apart(raw: bytes, text: str):
    path = Path(os.fsdecode(raw))
    assert path_to_text(path) == text
    assert text_to_path(text) == path


@given(PATHS)
@example(Path())
def test_every_path_comes_back_from_its_text(path: Path):
    text = path_to_text(path)
    text.encode("utf-8")  # raises where a lone surrogate is left
    assert text_to_path(text) == path


@given(PATHS, PATHS)
@example(Path(os.fsdecode(b"\xff")), Path("%FF"))
@example(Path("%FF"), Path("%25FF"))
def test_two_paths_never_share_a_text(first: Path, second: Path):
    assert (path_to_text(first) == path_to_text(second)) == (first == second)
