"""The stacks: what is accepted, what is refused and how, and the stand-in."""

import builtins
import errno
import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.interpolate import BSpline

from unet_lib import data
from unet_lib.data import isbi2012, synthetic

REQUIRED = ("train-volume.tif", "train-labels.tif", "test-volume.tif")
SMALL = (4, 24, 32)


def tif(stack, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, stack, photometric="minisblack", **options)
    return file.getvalue()


def zipped(contents, folder="ISBI-2012-challenge/"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(folder + name, content)
    return file.getvalue()


def fill(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def tree(folder):
    """Every file under a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def pixels():
    rng = np.random.default_rng(3)
    return {
        "train-volume.tif": rng.integers(0, 256, SMALL, dtype=np.uint8),
        "train-labels.tif": rng.choice(np.array([0, 255], np.uint8), SMALL),
        "test-volume.tif": rng.integers(0, 256, SMALL, dtype=np.uint8),
    }


@pytest.fixture
def files(pixels):
    return {name: tif(stack) for name, stack in pixels.items()}


@pytest.fixture
def true_labels():
    stack = np.random.default_rng(4).choice(np.array([0, 255], np.uint8), SMALL)
    return stack, tif(stack)


@pytest.fixture(autouse=True)
def small_house(monkeypatch, tmp_path, pixels, true_labels, request):
    """Small stacks with their own hashes, an own cache, and no variable set."""
    if request.node.name == "test_real_stacks":
        return
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr(isbi2012, "SHAPE", SMALL)
    hashes = {n: hashlib.sha256(s.tobytes()).hexdigest() for n, s in pixels.items()}
    monkeypatch.setattr(isbi2012, "PIXELS_SHA256", hashes)
    content = true_labels[1]
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    monkeypatch.setattr(isbi2012, "TEST_LABELS_BLOB", blob)
    # Nothing in these tests may reach out: a port that nobody listens at.
    monkeypatch.setattr(isbi2012, "ADDRESS", "http://127.0.0.1:9/stacks.zip")


@pytest.fixture
def serve(monkeypatch):
    """Serve one body on loopback; returns the list of paths asked for."""
    servers = []

    def start(body, status=200, cut=None):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}/stacks.zip"
        monkeypatch.setattr(isbi2012, "ADDRESS", address)
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def check(stacks, pixels):
    expected = pixels["train-volume.tif"].astype(np.float64) / 255
    np.testing.assert_allclose(stacks.train_images, expected, atol=1e-7)
    expected = pixels["test-volume.tif"].astype(np.float64) / 255
    np.testing.assert_allclose(stacks.test_images, expected, atol=1e-7)
    np.testing.assert_array_equal(
        stacks.train_labels, np.where(pixels["train-labels.tif"] == 255, 1, 0)
    )
    assert stacks.train_images.dtype == stacks.test_images.dtype == np.float32
    assert stacks.train_labels.dtype == np.uint8
    assert stacks.source == "ISBI 2012"


# From a folder ---------------------------------------------------------------


def test_folder_as_argument_before_the_variable(tmp_path, monkeypatch, files, pixels):
    folder = fill(tmp_path / "mine", files)
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "nowhere"))
    stacks = data.load_isbi2012(folder)
    check(stacks, pixels)
    assert stacks.test_labels is None


def test_folder_by_the_variable_before_the_cache(tmp_path, monkeypatch, files, pixels):
    fill(isbi2012.cache_folder(), {name: b"damaged" for name in files})
    monkeypatch.setenv(data.VARIABLE, str(fill(tmp_path / "mine", files)))
    check(data.load_isbi2012(), pixels)


def test_folder_as_the_zip_unpacks(tmp_path, files, pixels):
    fill(tmp_path / "mine" / "ISBI-2012-challenge", files)
    check(data.load_isbi2012(tmp_path / "mine"), pixels)


def test_copies_by_other_programs_have_the_same_pixels(tmp_path, files, pixels):
    name = "train-volume.tif"
    pages = [Image.fromarray(image) for image in pixels[name]]
    by_pillow = io.BytesIO()
    pages[0].save(by_pillow, "tiff", save_all=True, append_images=pages[1:])
    copies = (
        by_pillow.getvalue(),
        tif(pixels[name], imagej=True),
        tif(pixels[name], bigtiff=True, byteorder=">"),
    )
    for number, copy in enumerate(copies):
        folder = fill(tmp_path / str(number), {**files, name: copy})
        check(data.load_isbi2012(folder), pixels)


def test_test_labels_where_present(tmp_path, files, pixels, true_labels):
    stack, content = true_labels
    folder = fill(tmp_path / "mine", {**files, "test-labels.tif": content})
    stacks = data.load_isbi2012(folder)
    check(stacks, pixels)
    np.testing.assert_array_equal(stacks.test_labels, np.where(stack == 255, 1, 0))
    assert stacks.test_labels.dtype == np.uint8


def test_predictions_are_not_taken_for_test_labels(tmp_path, files):
    prediction = tif(np.zeros(SMALL, np.uint8))
    folder = fill(tmp_path / "mine", {**files, "test-labels.tif": prediction})
    with pytest.raises(data.DataError, match=r"test-labels\.tif.*predictions") as error:
        data.load_isbi2012(folder)
    assert isbi2012.TEST_LABELS_BLOB in str(error.value)


def test_test_labels_of_other_values(tmp_path, files, monkeypatch):
    content = tif(np.full(SMALL, 7, np.uint8))
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    monkeypatch.setattr(isbi2012, "TEST_LABELS_BLOB", blob)
    folder = fill(tmp_path / "mine", {**files, "test-labels.tif": content})
    with pytest.raises(data.DataError, match=r"test-labels\.tif has other values"):
        data.load_isbi2012(folder)


def test_blob_id_is_that_of_git(tmp_path, true_labels):
    path = tmp_path / "test-labels.tif"
    path.write_bytes(true_labels[1])
    git = ["git", "hash-object", "--no-filters", str(path)]
    try:
        ours = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert ours.strip() == isbi2012.TEST_LABELS_BLOB


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_file(tmp_path, files, name):
    del files[name]
    folder = fill(tmp_path / "mine", files)
    with pytest.raises(data.DataError, match="cannot be read") as error:
        data.load_isbi2012(folder)
    message = str(error.value)
    assert str(folder / name) in message
    assert data.VARIABLE in message
    assert isbi2012.ADDRESS in message


def test_missing_folder(tmp_path):
    with pytest.raises(data.DataError, match=r"train-volume\.tif cannot be read"):
        data.load_isbi2012(tmp_path / "nowhere")


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header only"])
def test_unreadable_file(tmp_path, files, name, damage):
    whole = files[name]
    files[name] = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"<html>404</html>",
        "header only": whole[:8],
    }[damage]
    folder = fill(tmp_path / "mine", files)
    with pytest.raises(data.DataError, match="Replace it by") as error:
        data.load_isbi2012(folder)
    assert f"{folder}: {name}" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda stack: stack[:-1],
        lambda stack: stack[0],
        lambda stack: stack.astype(np.uint16),
        lambda stack: stack.astype(np.float32),
    ],
    ids=["slice missing", "one slice", "uint16", "float32"],
)
def test_wrong_shape_or_type(tmp_path, files, pixels, change):
    files["test-volume.tif"] = tif(change(pixels["test-volume.tif"]))
    folder = fill(tmp_path / "mine", files)
    with pytest.raises(data.DataError, match=r"test-volume\.tif holds") as error:
        data.load_isbi2012(folder)
    assert f"expected uint8 of shape {SMALL}" in str(error.value)


@pytest.mark.parametrize("name", REQUIRED)
def test_one_wrong_pixel(tmp_path, files, pixels, name):
    stack = pixels[name].copy()
    stack[2, 3, 4] ^= 1
    files[name] = tif(stack)
    folder = fill(tmp_path / "mine", files)
    with pytest.raises(data.DataError, match="has other pixels") as error:
        data.load_isbi2012(folder)
    assert name in str(error.value)
    assert isbi2012.PIXELS_SHA256[name] in str(error.value)


def test_two_files_exchanged(tmp_path, files):
    files["train-volume.tif"] = files["test-volume.tif"]
    folder = fill(tmp_path / "mine", files)
    with pytest.raises(data.DataError, match=r"train-volume\.tif has other pixels"):
        data.load_isbi2012(folder)


@pytest.fixture
def quick_stand_in(monkeypatch):
    whole = data.synthetic_em
    monkeypatch.setattr(data, "kept_em", lambda seed: whole(2, 48, seed))


def one_line(capsys):
    out = capsys.readouterr().out
    assert out.endswith("\n")
    assert out.count("\n") == 1
    return out


# From the cache and by download ----------------------------------------------


@pytest.mark.parametrize("folder", ["ISBI-2012-challenge/", "", "../../", "/", "a\\"])
def test_download(serve, files, pixels, true_labels, folder, tmp_path):
    files["test-labels.tif"] = true_labels[1]
    asked = serve(zipped({**files, "README.txt": b"not wanted"}, folder))
    stacks = data.load_isbi2012()
    check(stacks, pixels)
    assert stacks.test_labels is not None
    # The stacks and nothing else, whatever paths the zip's members have.
    assert tree(isbi2012.cache_folder()) == files
    assert len(
        tree(tmp_path).keys()
        - {f"{isbi2012.cache_folder().relative_to(tmp_path)}.lock"}
    ) == len(files)
    check(data.load_isbi2012(), pixels)
    assert asked == ["/stacks.zip"]


def test_download_without_test_labels(serve, files, pixels):
    serve(zipped(files))
    stacks = data.load_isbi2012()
    check(stacks, pixels)
    assert stacks.test_labels is None


def test_download_completes_a_cache(serve, files, pixels):
    name = "train-labels.tif"
    fill(isbi2012.cache_folder(), {name: files[name]})
    serve(zipped(files))
    check(data.load_isbi2012(), pixels)
    assert tree(isbi2012.cache_folder()) == files


def damaged(body):
    """A zip whose directory is whole and whose first member is not."""
    middle = len(body) // 6
    return body[:middle] + bytes(16) + body[middle + 16 :]


FAILURES = {
    "404": lambda body: {"body": b"not found", "status": 404},
    "server error": lambda body: {"body": b"", "status": 503},
    "truncated zip": lambda body: {"body": body[: len(body) // 2]},
    "connection cut": lambda body: {"body": body, "cut": len(body) // 2},
    "cut at once": lambda body: {"body": body, "cut": 0},
    "a page, no zip": lambda body: {"body": b"<html>log in first</html>"},
    "damaged zip": lambda body: {"body": damaged(body)},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_download_fails(serve, files, failure):
    serve(**FAILURES[failure](zipped(files)))
    with pytest.raises(data.DownloadError, match="could not be fetched") as error:
        data.load_isbi2012()
    message = str(error.value)
    assert isbi2012.ADDRESS in message
    assert str(isbi2012.cache_folder()) in message
    assert data.VARIABLE in message
    assert "stand-in" in message
    assert list(isbi2012.cache_folder().iterdir()) == []


def test_off_line():
    with pytest.raises(OSError, match="could not be fetched from") as error:
        data.load_isbi2012()
    message = str(error.value)
    assert isbi2012.ADDRESS in message
    assert str(isbi2012.cache_folder()) in message
    assert data.VARIABLE in message
    assert "stand-in" in message
    assert list(isbi2012.cache_folder().iterdir()) == []


def test_off_line_without_pooch(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(data.DownloadError, match="pooch, which fetches it"):
        data.load_isbi2012()
    assert not isbi2012.cache_folder().exists()


def test_download_of_wrong_pixels(serve, files, pixels):
    files["test-volume.tif"] = tif(pixels["test-volume.tif"] ^ 1)
    serve(zipped(files))
    with pytest.raises(data.DataError, match=r"zip.*test-volume\.tif has other pixels"):
        data.load_isbi2012()
    assert list(isbi2012.cache_folder().iterdir()) == []


def test_download_of_predictions_as_test_labels(serve, files):
    files["test-labels.tif"] = tif(np.zeros(SMALL, np.uint8))
    serve(zipped(files))
    with pytest.raises(data.DataError, match=r"zip.*test-labels\.tif.*predictions"):
        data.load_isbi2012()
    assert list(isbi2012.cache_folder().iterdir()) == []


def test_download_that_lacks_a_stack(serve, files):
    del files["train-labels.tif"]
    serve(zipped(files))
    with pytest.raises(data.DataError, match=r"lacks train-labels\.tif"):
        data.load_isbi2012()
    assert list(isbi2012.cache_folder().iterdir()) == []


def test_failed_download_leaves_what_was_there(serve, files):
    there = {"train-volume.tif": files["train-volume.tif"], "notes.txt": b"mine"}
    fill(isbi2012.cache_folder(), there)
    serve(zipped(files)[:1000])
    with pytest.raises(data.DownloadError):
        data.load_isbi2012()
    assert tree(isbi2012.cache_folder()) == there


@pytest.mark.usefixtures("quick_stand_in")
def test_cache_that_cannot_be_written(serve, files, capsys):
    """It is told as what it is, and not as a machine that is off line."""
    serve(zipped(files))
    cache = isbi2012.cache_folder()
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(
        isbi2012.CacheError, match=r"cannot be kept in .*exists"
    ) as error:
        data.load_isbi2012()
    assert str(cache) in str(error.value)
    assert "could not be fetched" not in str(error.value)
    assert data.load_or_stand_in().source == "synthetic"
    assert "cannot be kept" in one_line(capsys)


def test_folder_in_the_place_of_a_stack(serve, files, pixels):
    asked = serve(zipped(files))
    taken = isbi2012.cache_folder() / "train-labels.tif"
    taken.mkdir(parents=True)
    with pytest.raises(data.CacheError, match=r"train-labels\.tif is a folder"):
        data.load_isbi2012()
    assert asked == []
    taken.rmdir()
    check(data.load_isbi2012(), pixels)


@pytest.mark.parametrize("name", ["stacks.zip", "train-labels.tif"])
def test_full_disk(serve, files, pixels, monkeypatch, name):
    """While the zip is fetched, and while the stacks are written."""
    serve(zipped(files))

    def full(path, whole):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole

    opened, write = builtins.open, isbi2012.Path.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(
            builtins,
            "open",
            lambda file, *rest, **more: full(
                isbi2012.Path(str(file)), opened(file, *rest, **more)
            ),
        )
        patch.setattr(
            isbi2012.Path,
            "write_bytes",
            lambda path, content: full(path, write(path, content)),
        )
        with pytest.raises(data.CacheError, match="No space left on device") as error:
            data.load_isbi2012()
    assert "could not be fetched" not in str(error.value)
    assert "Make room" in str(error.value)
    check(data.load_isbi2012(), pixels)


def test_what_a_killed_download_left_is_removed(serve, files, pixels):
    serve(zipped(files))
    left = isbi2012.cache_folder() / ".download-killed"
    fill(left, {"stacks.zip": b"half"})
    check(data.load_isbi2012(), pixels)
    assert tree(isbi2012.cache_folder()) == files
    assert not left.exists()


def test_a_zip_that_unpacks_to_gigabytes(serve, files, monkeypatch):
    """It is read no further than a stack is long."""
    bomb = {**files, "train-volume.tif": bytes(10**7)}
    assert len(zipped(bomb)) < 50_000
    serve(zipped(bomb))
    with pytest.raises(data.DownloadError, match=r"train-volume\.tif unpacks to more"):
        data.load_isbi2012()
    assert list(isbi2012.cache_folder().iterdir()) == []


def test_damaged_cache_is_named_and_fetched_anew_when_deleted(serve, files, pixels):
    asked = serve(zipped(files))
    cache = fill(isbi2012.cache_folder(), {**files, "test-volume.tif": b"II*\0 broken"})
    with pytest.raises(data.DataError, match=r"test-volume\.tif.*Delete it") as error:
        data.load_isbi2012()
    assert str(cache) in str(error.value)
    assert asked == []
    (cache / "test-volume.tif").unlink()
    check(data.load_isbi2012(), pixels)
    assert asked == ["/stacks.zip"]
    assert tree(cache) == files


def test_cache_folder_is_that_of_pooch():
    pooch = pytest.importorskip("pooch")
    assert isbi2012.cache_folder() == pooch.os_cache("unet-book")


# The stacks or the stand-in --------------------------------------------------


def test_load_or_stand_in_loads(tmp_path, monkeypatch, files, pixels, capsys):
    folder = fill(tmp_path / "mine", files)
    monkeypatch.setenv(data.VARIABLE, str(folder))
    check(data.load_or_stand_in(), pixels)
    assert capsys.readouterr().out == ""


def test_load_or_stand_in_downloads(serve, files, pixels, capsys):
    serve(zipped(files))
    check(data.load_or_stand_in(), pixels)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("quick_stand_in")
def test_load_or_stand_in_off_line(capsys):
    stacks = data.load_or_stand_in()
    assert stacks.source == "synthetic"
    assert stacks.test_labels is None
    assert stacks.train_images.shape == stacks.test_images.shape
    assert not np.array_equal(stacks.train_images, stacks.test_images)
    line = one_line(capsys)
    assert "synthetic stand-in" in line
    assert "could not be fetched" in line
    assert "differ from the book's" in line


@pytest.mark.usefixtures("quick_stand_in")
def test_load_or_stand_in_without_pooch_says_why(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert data.load_or_stand_in().source == "synthetic"
    assert "pooch, which fetches the real stacks, is not installed" in one_line(capsys)


@pytest.mark.usefixtures("quick_stand_in")
def test_load_or_stand_in_as_the_variable_asks(serve, monkeypatch, files, capsys):
    asked = serve(zipped(files))
    fill(isbi2012.cache_folder(), files)
    monkeypatch.setenv(data.VARIABLE, "synthetic")
    assert data.load_or_stand_in().source == "synthetic"
    assert "synthetic stand-in" in one_line(capsys)
    assert asked == []


def test_load_isbi2012_never_stands_in(monkeypatch):
    monkeypatch.setenv(data.VARIABLE, "synthetic")
    with pytest.raises(data.DataError, match="load_or_stand_in"):
        data.load_isbi2012()


def test_a_wrong_named_folder_is_no_reason_to_stand_in(tmp_path, monkeypatch):
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="nowhere"):
        data.load_or_stand_in()


# Folds -----------------------------------------------------------------------


def test_folds_of_the_book():
    pairs = data.folds()
    assert len(pairs) == 5
    for number, (training, held_out) in enumerate(pairs):
        np.testing.assert_array_equal(held_out, np.arange(6) + 6 * number)
        assert len(training) == 24


@settings(deadline=None)
@given(st.integers(2, 120).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_folds_part_the_slices_into_blocks(case):
    slices, k = case
    pairs = data.folds(slices, k)
    assert len(pairs) == k
    for training, held_out in pairs:
        assert sorted([*training, *held_out]) == list(range(slices))
        assert list(training) == sorted(training)
        assert list(held_out) == list(range(held_out[0], held_out[-1] + 1))
    together = np.concatenate([held_out for _, held_out in pairs])
    assert together.tolist() == list(range(slices))
    sizes = [len(held_out) for _, held_out in pairs]
    assert max(sizes) - min(sizes) <= 1


# One image a slice -----------------------------------------------------------


@pytest.fixture
def stacks(tmp_path, files, true_labels):
    files["test-labels.tif"] = true_labels[1]
    return data.load_isbi2012(fill(tmp_path / "stacks", files))


def test_export_keeps_every_value(tmp_path, stacks, pixels, true_labels):
    out = tmp_path / "new" / "out"
    data.export_slices(stacks, out)
    parts = {
        "train/images": pixels["train-volume.tif"],
        "train/labels": pixels["train-labels.tif"],
        "test/images": pixels["test-volume.tif"],
        "test/labels": true_labels[0],
    }
    assert len(tree(out)) == sum(len(stack) for stack in parts.values())
    for part, stack in parts.items():
        for number, expected in enumerate(stack):
            with Image.open(out / part / f"{number:02d}.png") as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), expected)
    assert os.listdir(out.parent) == ["out"]


def test_export_without_test_labels_into_an_empty_folder(tmp_path):
    images, labels = data.synthetic_em(2, 40)
    out = tmp_path / "out"
    out.mkdir()
    data.export_slices(data.Stacks(images, labels, images, None, "synthetic"), out)
    assert sorted(os.listdir(out / "test")) == ["images"]
    with Image.open(out / "test" / "images" / "01.png") as image:
        np.testing.assert_array_equal(np.asarray(image) / np.float32(255), images[1])


def test_export_overwrites_nothing(tmp_path, stacks):
    out = fill(tmp_path / "out", {"precious.txt": b"mine"})
    for taken in (out, out / "precious.txt"):
        with pytest.raises(FileExistsError, match="is not an empty folder"):
            data.export_slices(stacks, taken)
    assert tree(out) == {"precious.txt": b"mine"}


def test_export_that_fails_leaves_nothing(tmp_path, stacks, monkeypatch):
    write = Image.Image.save

    def full_disk(image, path):
        if path.name == "02.png":
            raise OSError("No space left on device")
        write(image, path)

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        data.export_slices(stacks, tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new") == []


# The stand-in ----------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return data.synthetic_em(8, 512, seed=0)


def test_stand_in_has_the_types_of_the_stacks(drawn):
    images, labels = drawn
    assert images.shape == labels.shape == (8, 512, 512)
    assert images.dtype == np.float32
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1}
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_allclose(255 * images, np.rint(255 * images), atol=1e-4)


def test_stand_in_resembles_the_stacks(drawn):
    images, labels = drawn
    # 126.1632 and 44.0219 of 255, and 21.963 %, are the real training stack's.
    assert images.mean() == pytest.approx(126.1632 / 255, abs=0.01)
    assert images.std() == pytest.approx(44.0219 / 255, abs=0.01)
    assert (labels == 0).mean() == pytest.approx(0.21963, abs=0.02)
    for image, label in zip(images, labels, strict=True):
        assert image.std() > 0.1
        assert 0.15 < (label == 0).mean() < 0.30
        assert image[label == 0].mean() < image[label == 1].mean() - 0.15
        _, cells = ndimage.label(label)
        assert 60 < cells < 250


def test_stand_in_is_not_solved_by_a_threshold(drawn):
    images, labels = drawn
    thresholds = np.linspace(0, 1, 52)
    errors = [np.mean((images > t) != labels) for t in thresholds]
    assert min(errors) > 0.10


def test_stand_in_drifts_from_slice_to_slice(drawn):
    def likeness(stack, distance):
        pairs = zip(stack[:-distance], stack[distance:], strict=True)
        return np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])

    for stack in drawn:
        near, further, far = (likeness(stack, distance) for distance in (1, 2, 6))
        assert 0.9 > near > further + 0.05 > far + 0.05


def test_stand_in_comes_from_its_seed():
    first, again = data.synthetic_em(2, 64, 5), data.synthetic_em(2, 64, 5)
    other = data.synthetic_em(2, 64, 6)
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, different)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(16, 70), st.integers(0, 2**32 - 1))
@example(1, 16, 255)  # where nearly no seed of a cell is kept
def test_stand_in_of_any_size(slices, size, seed):
    images, labels = data.synthetic_em(slices, size, seed)
    assert images.shape == labels.shape == (slices, size, size)
    assert np.isfinite(images).all()
    assert images.std() > 0.05


def test_spline_basis_is_the_cubic_b_spline():
    rng = np.random.default_rng(1)
    basis = synthetic._spline_basis(rng, 40, 3.5)
    shift = np.random.default_rng(1).random()
    knots = np.arange(-2, 3)
    for row, values in enumerate(basis):
        position = row / 3.5 + shift + 1
        expected = [
            BSpline.basis_element(knots + k, extrapolate=False)(position)
            for k in range(len(values))
        ]
        expected = np.nan_to_num(expected)
        np.testing.assert_allclose(
            values, expected / np.linalg.norm(expected), atol=1e-6
        )


def test_border_distance_of_two_half_planes():
    cells = np.zeros((1, 20, 20), int)
    cells[:, :, 8:] = 1  # in full resolution the cells meet at column 16
    distance = synthetic._border_distance(cells, 39)
    assert distance.shape == (1, 39, 39)
    expected = np.abs(np.arange(39) - 15)
    np.testing.assert_allclose(distance[0], np.tile(expected, (39, 1)), atol=2)


# The real stacks -------------------------------------------------------------


def test_real_stacks():
    folder = os.environ.get(data.VARIABLE, "")
    if not os.path.isdir(folder):
        pytest.skip(f"{data.VARIABLE} names no folder with the ISBI 2012 stacks")
    stacks = data.load_isbi2012()
    assert stacks.train_images.shape == stacks.test_images.shape == (30, 512, 512)
    gray = 255 * stacks.train_images.astype(np.float64)
    assert gray.mean() == pytest.approx(126.1632, abs=1e-4)
    assert gray.std() == pytest.approx(44.0219, abs=1e-4)
    gray = 255 * stacks.test_images.astype(np.float64)
    assert gray.mean() == pytest.approx(127.3964, abs=1e-4)
    assert gray.std() == pytest.approx(45.3037, abs=1e-4)
    assert (stacks.train_labels == 0).mean() == pytest.approx(0.21963, abs=5e-6)
    assert set(np.unique(stacks.train_labels)) == {0, 1}


def test_a_drawn_stack_is_kept_and_read_again(tmp_path, monkeypatch):
    whole, drawn = data.synthetic_em, []

    def draw(seed):
        drawn.append(seed)
        return whole(2, 48, seed)

    monkeypatch.setattr(synthetic, "synthetic_em", draw)
    monkeypatch.setattr(synthetic, "cache_folder", lambda: tmp_path / "cache")
    for _ in range(2):
        for found, expected in zip(synthetic.kept_em(3), whole(2, 48, 3), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert drawn == [3]
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])  # cut short: drawn again
    synthetic.kept_em(3)
    assert drawn == [3, 3]
    # Where nothing can be kept it is drawn each time.
    monkeypatch.setattr(synthetic, "cache_folder", lambda: kept / "no folder")
    synthetic.kept_em(3)
    assert drawn == [3, 3, 3]
