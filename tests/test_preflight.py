from reidserve.evaluate import Labels, Rule, check_labels


def labels(*rows: tuple[str | None, str | None, str | None]) -> Labels:
    return Labels(*(list(column) for column in zip(*rows, strict=True)))


GALLERY = labels(
    ("1", "c1", "a"), ("1", "c2", "b"), ("2", "c1", "c"), ("3", None, "d"), ("-1", "c2", "e"), ("0000", "c3", "f")
)


def test_each_query_that_can_never_match_is_named_with_its_reason():
    query = labels(
        ("1", "c1", "q0"),
        (None, "c1", "q1"),
        ("-1", "c1", "q2"),
        ("9", "c1", "q3"),
        ("2", "c1", "q4"),
        ("3", None, "d"),
    )
    found = check_labels(query, GALLERY, Rule())
    assert found.unmatchable == {
        "no pid": [1],
        "junk": [2],
        "absent": [3],
        "own camera": [4],
        "own image": [5],
    }
    assert found.lines()[3] == (
        "1 of 6 queries have a pid that the gallery holds on their own camera only, which the rule drops"
    )


def test_what_a_rule_keeps_can_match():
    # Where a query has the pid of distractors, it is an identity.
    query = labels(("2", "c1", "q"), ("0000", "c1", "r"))
    assert check_labels(query, GALLERY, Rule(distractors=False)).unmatchable == {"own camera": [0]}
    assert check_labels(query, GALLERY, Rule(cameras="any")).unmatchable == {}
    assert check_labels(query, GALLERY, Rule(cameras="market")).unmatchable == {"own camera": [0]}
    assert check_labels(query, GALLERY, Rule(cameras="cross")).unmatchable == {"own camera": [0]}


def test_unknown_cameras_and_pids_are_told():
    found = check_labels(labels(("1", None, None)), labels(("1", None, None), (None, "c1", None)), Rule())
    assert [note.split(" have")[0] for note in found.notes] == [
        "1 of 1 queries",
        "1 of 2 gallery entries",
        "1 of 2 gallery entries",
    ]
    assert "count as wrong for every query" in found.notes[2]
    assert check_labels(labels(("1", None, None)), labels(("1", None, None)), Rule(cameras="any")).notes == []
