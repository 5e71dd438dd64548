import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reidserve.datasets.synth import Domain, Kind, SynthSpec, SynthSummary, write_dataset
from reidserve.errors import DatasetError, OutputExistsError

Labels = list[tuple[str, str]]
Rows = NDArray[np.float64]

SMALL = SynthSpec(train_identities=3, test_identities=2, cameras=3, images_per_camera=2, junk=4, distractors=3)
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
NAME = re.compile(r"(-1|\d{4})_c(\d)s\d_\d{6}_\d{2}\.jpg")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pictures(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if name != "synth.json"}


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


def labels(folder: Path) -> Labels:
    """(pid, camera) of each picture of a folder."""
    names = [path.name for path in sorted(folder.iterdir())]
    found = [match for name in names if (match := NAME.fullmatch(name))]
    assert len(found) == len(names), "a name is not Market-1501's"
    return [(match[1], match[2]) for match in found]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synth") / "small"
    write_dataset(root, SMALL)
    return root


def test_the_names_are_those_of_market_1501(small: Path) -> None:
    assert {pid for pid, _ in labels(small / "bounding_box_train")} == {"0001", "0003", "0005"}
    assert {pid for pid, _ in labels(small / "query")} == {"0002", "0004"}
    assert {pid for pid, _ in labels(small / "bounding_box_test")} == {"0002", "0004", "0000", "-1"}
    for folder in FOLDERS:
        assert {camera for _, camera in labels(small / folder)} == {"1", "2", "3"}


def test_the_summary_and_the_card_count_what_is_there(small: Path, tmp_path: Path) -> None:
    summary = write_dataset(tmp_path / "again", SMALL)
    assert summary == SynthSummary(train=18, query=6, gallery=13, junk=4, distractors=3)
    assert [len(labels(small / folder)) for folder in FOLDERS] == [18, 6, 13]
    card = json.loads((small / "synth.json").read_text())
    assert card["counts"] == {"train": 18, "query": 6, "gallery": 13, "junk": 4, "distractors": 3}
    assert SynthSpec(**card["spec"]) == SMALL


def test_each_test_identity_is_asked_for_once_per_camera(small: Path) -> None:
    assert sorted(labels(small / "query")) == [(pid, camera) for pid in ("0002", "0004") for camera in "123"]


def test_every_query_has_a_positive_from_another_camera(small: Path) -> None:
    gallery = labels(small / "bounding_box_test")
    for pid, camera in labels(small / "query"):
        assert any(other == pid and where != camera for other, where in gallery)


@pytest.mark.parametrize("kind", ["person", "vehicle"])
@pytest.mark.parametrize("domain", ["a", "b"])
def test_the_same_spec_gives_the_same_bytes_in_any_number_of_processes(
    tmp_path: Path, kind: Kind, domain: Domain
) -> None:
    spec = replace(SMALL, kind=kind, domain=domain)
    write_dataset(tmp_path / "one", spec)
    write_dataset(tmp_path / "two", spec, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    "more",
    [
        {"train_identities": 5}, {"test_identities": 4}, {"images_per_camera": 3}, {"junk": 6}, {"distractors": 9},
    ],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_asking_for_more_keeps_the_pictures_there_were(small: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    write_dataset(tmp_path / "more", replace(SMALL, **more))
    before, after = pictures(small), pictures(tmp_path / "more")
    assert len(after) > len(before)
    assert {name: after.get(name) for name in before} == before


def test_another_camera_keeps_the_pictures_of_the_identities(small: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "more", replace(SMALL, cameras=4))
    before, after = pictures(small), pictures(tmp_path / "more")
    named = [name for name in before if "/0000_" not in name and "/-1_" not in name]
    assert all(after[name] == before[name] for name in named)


@pytest.mark.parametrize("other", [{"seed": 1}, {"domain": "b"}, {"kind": "vehicle"}], ids=str)
def test_another_seed_domain_or_kind_shares_no_picture(small: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    write_dataset(tmp_path / "other", replace(SMALL, **other))
    ours, theirs = ({data for name, data in pictures(root).items() if name.endswith("jpg")}
                    for root in (small, tmp_path / "other"))  # fmt: skip
    assert not ours & theirs


@pytest.mark.parametrize("kind", ["person", "vehicle"])
@pytest.mark.parametrize("domain", ["a", "b"])
def test_a_mask_has_the_size_of_its_picture_and_holds_the_target(tmp_path: Path, kind: Kind, domain: Domain) -> None:
    root = tmp_path / "set"
    write_dataset(root, replace(SMALL, kind=kind, domain=domain, junk=0))
    differences = []
    for folder in FOLDERS:
        for path in sorted((root / folder).iterdir()):
            mask = opened(root / "masks" / folder / f"{path.stem}.png")
            picture = opened(path)
            assert (picture.mode, mask.mode, mask.size) == ("RGB", "L", picture.size)
            inside, pixels = np.asarray(mask), np.asarray(picture, np.float64)
            assert set(np.unique(inside)) == {0, 255}
            assert 0.08 < (inside == 255).mean() < 0.9
            differences.append(np.abs(pixels[inside == 255].mean(0) - pixels[inside == 0].mean(0)).max())
    # Dark on dark happens; it is not the rule.
    assert np.mean(differences) > 15


def test_persons_have_the_size_of_market_1501(small: Path) -> None:
    assert {opened(path).size for folder in FOLDERS for path in (small / folder).iterdir()} == {(64, 128)}


def test_the_pictures_of_one_identity_differ(small: Path) -> None:
    groups: defaultdict[str, set[bytes]] = defaultdict(set)
    for path in (small / "bounding_box_train").iterdir():
        groups[path.name[:4]].add(path.read_bytes())
    assert {len(group) for group in groups.values()} == {SMALL.cameras * SMALL.images_per_camera}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "dog"}, 'kind must be "person" or "vehicle", got \'dog\''),
        ({"domain": "c"}, 'domain must be "a" or "b", got \'c\''),
        ({"train_identities": -1}, "train_identities must be a whole number from 0 to 4999, got -1"),
        ({"test_identities": 0}, "test_identities must be a whole number from 1 to 4999, got 0"),
        ({"test_identities": 5000}, "test_identities must be a whole number from 1 to 4999, got 5000"),
        ({"cameras": 1}, "cameras must be a whole number from 2 to 9, got 1"),
        ({"images_per_camera": 1}, "images_per_camera must be a whole number from 2 to 99, got 1"),
        ({"junk": 1.5}, "junk must be a whole number from 0 to 20000, got 1.5"),
        ({"distractors": True}, "distractors must be a whole number from 0 to 20000, got True"),
        ({"seed": -1}, "seed must be a whole number from 0 to 9223372036854775807, got -1"),
    ],
)
def test_a_spec_that_cannot_be_drawn_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError) as refusal:
        replace(SMALL, **wrong)
    assert str(refusal.value) == message


def test_fewer_than_one_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="processes must be at least 1, got 0"):
        write_dataset(tmp_path / "set", SMALL, processes=0)


def test_what_is_there_already_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="expected nothing at"):
        write_dataset(tmp_path / "set", SMALL)
    assert contents(tmp_path) == {"set/notes.txt": b"mine"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, error: type[BaseException], processes: int) -> None:
    def interrupt(done: int, total: int) -> None:
        assert 0 < done <= total == 37
        raise error

    with pytest.raises(error):
        write_dataset(tmp_path / "set", SMALL, processes=processes, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_number_of_pictures(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(tmp_path / "set", SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (37, 37)


def histogram(picture: Image.Image, space: str, stripes: int) -> Rows:
    """Joint 8 x 8 x 8 histograms of horizontal stripes, one row of unit length by Hellinger's root."""
    levels = np.asarray(picture.convert(space)) >> 5
    bins = levels @ np.array([64, 8, 1])
    counts = [np.bincount(stripe.ravel(), minlength=512) for stripe in np.array_split(bins, stripes)]
    roots: Rows = np.sqrt(np.concatenate(counts))
    return roots / np.float64(np.linalg.norm(roots))


def rank1(query: Rows, gallery: Rows, query_labels: Labels, gallery_labels: Labels) -> float:
    """Rank-1 by the rule of Market-1501: a query's own pid by its own camera, and junk, are left out."""
    hits = 0
    for (pid, camera), scores in zip(query_labels, query @ gallery.T, strict=True):
        ranked = (gallery_labels[row] for row in np.argsort(-scores))
        best = next(label for label in ranked if label != (pid, camera) and label[0] != "-1")
        hits += best[0] == pid
    return hits / len(query)


@pytest.mark.parametrize("kind", ["person", "vehicle"])
@pytest.mark.parametrize("domain", ["a", "b"])
def test_colours_alone_do_not_solve_it(tmp_path: Path, kind: Kind, domain: Domain) -> None:
    root = tmp_path / "set"
    spec = SynthSpec(kind=kind, domain=domain, train_identities=0, test_identities=200, images_per_camera=2)
    assert write_dataset(root, spec, processes=2).gallery >= 1000
    parts = [[opened(path) for path in sorted((root / folder).iterdir())] for folder in FOLDERS[1:]]
    for space, stripes in (("RGB", 1), ("HSV", 1), ("RGB", 6)):
        query, gallery = (np.stack([histogram(picture, space, stripes) for picture in part]) for part in parts)
        score = rank1(query, gallery, labels(root / "query"), labels(root / "bounding_box_test"))
        assert score < 0.6, f"{space} in {stripes} stripes"
