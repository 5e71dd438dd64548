import os
from pathlib import Path

import pytest

from reidserve.errors import OutputExistsError
from reidserve.index.storage.folders import make_folder, new_folder


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path):
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "out") as partial:
        partial.write_text("half")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "above" / "out") as partial:
        (partial / "file").write_text("1")
        assert not (tmp_path / "above" / "out").exists()
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["out"]
    assert (tmp_path / "above" / "out" / "file").read_text() == "1"
    with pytest.raises(OutputExistsError, match="is there already"), new_folder(tmp_path / "above" / "out"):
        pytest.fail("it is there")


def test_two_processes_of_one_number_do_not_remove_each_others_folder(tmp_path: Path):
    with new_folder(tmp_path / "out") as first:
        (first / "file").write_text("1")
        with pytest.raises(ValueError, match="half"), new_folder(tmp_path / "out"):
            raise ValueError("half")
    assert (tmp_path / "out" / "file").read_text() == "1"


def test_every_folder_that_is_made_is_on_the_disk(tmp_path: Path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr("reidserve.index.storage.folders.sync", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    synced.clear()
    monkeypatch.chdir(tmp_path)
    make_folder(Path("a"))
    make_folder(Path("d"))
    assert synced == [Path(os.path.realpath(tmp_path))]
