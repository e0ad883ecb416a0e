"""What stands in a place is the old or the new in full, at every moment."""

import pytest

from gating import swap


@pytest.fixture
def folders(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    return tmp_path / "new", tmp_path / "old"


def test_a_folder_takes_anothers_place_and_nothing_is_left_beside(folders, tmp_path):
    swap.replace(*folders)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "new").read_text() == "new"


def test_a_place_that_is_free_is_simply_taken(folders, tmp_path):
    swap.replace(folders[0], tmp_path / "free")
    assert (tmp_path / "free" / "new").is_file() and folders[1].is_dir()


def test_a_system_that_cannot_exchange_folders_does_it_in_two_steps(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    swap.replace(*folders)
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and (tmp_path / "old" / "new").is_file()


def test_a_file_that_cannot_be_written_in_full_leaves_the_old_one(tmp_path, monkeypatch):
    place = tmp_path / "report.html"
    swap.write(place, "old")
    monkeypatch.setattr(swap.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        swap.write(place, b"new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    assert place.stat().st_mode & 0o777 == 0o644
