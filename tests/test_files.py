"""Files that are there whole, or as they were before."""

import os

import pytest

from unet_lib._files import write_text, written


def test_what_is_written_is_there(tmp_path):
    path = tmp_path / "record.json"
    for text in ("Tür\n", "another\n"):  # new, and over what there is
        write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_there_before_all_of_it_is(tmp_path):
    path = tmp_path / "record.json"
    write_text(path, "old")
    with written(path) as temporary:
        assert temporary.parent == tmp_path  # a file system's own rename
        with temporary.open("w") as file:
            file.write("ne")
            file.flush()
            assert path.read_text() == "old"
            file.write("w")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_whoever_may_read_other_files_may_read_what_is_written(tmp_path):
    (tmp_path / "plain").touch()
    with written(tmp_path / "network") as temporary:
        temporary.write_text("as safetensors writes")
        temporary.chmod(0o600)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


class Stopped(Exception):
    """Stands for whatever ends a program."""


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize(
    ("problem", "raised", "message"),
    [
        (OSError("the disk is full"), OSError, r"record\.json could not .* full.*room"),
        (Stopped("enough"), Stopped, "^enough$"),  # none of ours: as it is
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_writer_that_fails_leaves_what_was(
    tmp_path, before, problem, raised, message
):
    path = tmp_path / "record.json"
    if before:
        path.write_text(before)

    def write():
        with written(path) as temporary:
            temporary.write_text("half")
            raise problem

    with pytest.raises(raised, match=message):
        write()
    left = {one: one.read_text() for one in tmp_path.iterdir()}
    assert left == ({path: before} if before else {})


def test_a_rename_that_fails_leaves_what_was(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_text(path, "old")

    def fails(*args):
        raise OSError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match=r"json could not be written \(read-only\)"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nowhere.record\.json could not be written"):
        write_text(tmp_path / "nowhere" / "record.json", "new")


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    path = tmp_path / "record.json"
    with written(path) as temporary:
        name = temporary.name
        temporary.write_text("")
    (tmp_path / name).write_text("half of a longer text")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
