"""Files that are whole or as they were before, refused in time, read or explained."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from unet_lib._files import (
    check_folder,
    check_output,
    read_json,
    read_toml,
    write_text,
    written,
)


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


def leftovers(path):
    """Other files beside `path`."""
    return [one for one in path.parent.iterdir() if one != path]


KILLED = """
import os, signal, sys
from pathlib import Path
from unet_lib._files import written
with written(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of a longer text")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills itself by a signal")
def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    path, other = tmp_path / "record.json", tmp_path / "other.json"
    subprocess.run([sys.executable, "-c", KILLED, path])
    assert len(leftovers(path)) == 1
    write_text(other, "not its file")
    assert len(leftovers(path)) == 2
    write_text(path, "new")
    assert path.read_text() == "new"
    assert leftovers(path) == [other]


def test_only_what_is_surely_left_goes(tmp_path):
    path = tmp_path / "record.json"
    with written(path) as temporary:
        _, machine, process, _, end = temporary.name.split("-")
        assert process == str(os.getpid())
    names = {
        "of this process": f".tmp-{machine}-{process}-99-{end}",
        "of another machine": f".tmp-elsewhere-1-99-{end}",
        "somebody's own": f".tmp-{end}",
    }
    for name in names.values():
        (tmp_path / name).touch()
    write_text(path, "new")
    assert {one.name for one in leftovers(path)} == set(names.values())
    week = time.time() - 7 * 24 * 3600
    for name in names.values():
        os.utime(tmp_path / name, (week, week))
    write_text(path, "new")
    assert [one.name for one in leftovers(path)] == [names["somebody's own"]]


def test_two_writers_do_not_mix_their_bytes(tmp_path):
    path = tmp_path / "map.tif"
    with written(path) as first:
        first.write_bytes(b"A" * 1000)
        with written(path) as second:
            second.write_bytes(b"B" * 10)
            assert first.read_bytes() == b"A" * 1000
        assert path.read_bytes() == b"B" * 10
    assert path.read_bytes() == b"A" * 1000
    assert not leftovers(path)


def test_a_long_name_is_no_hindrance(tmp_path):
    path = tmp_path / ("ü" * 120 + ".json")  # 245 bytes of the 255 that are allowed
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
@pytest.mark.parametrize("before", [None, "old"])
def test_a_link_stays_and_its_target_is_written(tmp_path, before):
    link, target = tmp_path / "link.json", tmp_path / "disk" / "target.json"
    target.parent.mkdir()
    if before:
        target.write_text(before)
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert not leftovers(target)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_is_written_through(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_output(pipe, (".json",))  # needs no suffix
    # Opened for both, so that neither end waits; a pipe holds 64 kB.
    reader = os.open(pipe, os.O_RDWR)
    write_text(pipe, "new")
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="devices are POSIX's")
def test_a_device_stays_one(tmp_path):
    # A link, so that a fault would not replace the machine's own device.
    null = tmp_path / "null"
    null.symlink_to(os.devnull)
    check_output(null, (".json",))
    write_text(null, "new")
    assert null.is_symlink()
    assert stat.S_ISCHR(null.stat().st_mode)


def test_an_output_is_refused_before_the_work(tmp_path):
    source, existing = tmp_path / "in.tif", tmp_path / "map.tif"
    source.write_text("images")
    existing.write_text("old")
    slices = tmp_path / "slices"
    (slices / "maps").mkdir(parents=True)
    inputs = [source, tmp_path / "absent", slices]

    def check(path, **options):
        check_output(path, (".tif", ".tiff"), inputs, **options)

    check(slices / "maps" / "new.tif")  # a folder in it is not read

    check(tmp_path / "new.tif")
    check(tmp_path / "NEW.TIFF")
    check(existing, overwrite=True)
    for path, options, problem, message in [
        (tmp_path, {}, IsADirectoryError, "is a folder"),
        (tmp_path / "map.png", {}, ValueError, r"must end in \.tif or \.tiff"),
        (tmp_path / "map", {}, ValueError, r"must end in \.tif"),
        (source, {"overwrite": True}, ValueError, "is one of the inputs"),
        (slices / "new.tif", {}, ValueError, "would be read as one of the inputs"),
        (existing, {}, FileExistsError, "another name, or add --overwrite"),
        (tmp_path / "no" / "a.tif", {}, FileNotFoundError, r"no folder .*no\."),
        (source / "a.tif", {}, FileNotFoundError, r"no folder .*in\.tif"),
    ]:
        with pytest.raises(problem, match=message):
            check(path, **options)
    if hasattr(os, "link"):  # by another name
        os.link(source, tmp_path / "same.tif")
        with pytest.raises(ValueError, match="is one of the inputs"):
            check(tmp_path / "same.tif", overwrite=True)


@pytest.mark.parametrize(
    "check", [check_folder, lambda path: check_output(path, (".x",))]
)
def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch, check):
    def fails(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", fails)
    with pytest.raises(
        OSError, match=r"a\.x cannot be written \(Read-only file system\)"
    ):
        check(tmp_path / "a.x")


def test_a_folder_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for path in (Path("new"), Path("new/deep/er"), tmp_path, Path("new").absolute()):
        check_folder(path)
    assert os.listdir() == ["file"]  # nothing is made
    for path in (Path("file"), Path("file/deeper")):
        with pytest.raises(NotADirectoryError, match="file is not a folder"):
            check_folder(path)


MARK = b"\xef\xbb\xbf"  # with which Notepad and PowerShell begin a file


@pytest.mark.parametrize("before", [b"", MARK])
def test_a_byte_order_mark_is_read_over(tmp_path, before):
    (tmp_path / "a.toml").write_bytes(before + "name = 'Tür'".encode())
    (tmp_path / "a.json").write_bytes(before + '{"name": "Tür"}'.encode())
    for read, path in ((read_toml, "a.toml"), (read_json, "a.json")):
        assert read(tmp_path / path) == {"name": "Tür"}


@pytest.mark.parametrize(
    ("read", "name", "kind"),
    [(read_json, "a.safetensors", "JSON"), (read_toml, "a.json", "TOML")],
)
@pytest.mark.parametrize(
    "content",
    [b"{broken", b"\xff", b"a = " + b"[" * 100_000, b"[" * 100_000, b"9" * 5000],
)
def test_what_cannot_be_read_is_said_with_its_name(tmp_path, read, name, kind, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not valid {kind}: "):
        read(tmp_path / name)
