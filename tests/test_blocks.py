"""Blocks of an image larger than memory give the numbers of the whole."""

import importlib.util
import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unet_lib.blocks import halo, predict_into
from unet_lib.model import UNet
from unet_lib.predict import predict


def tiny(depth, seed=0, **options):
    torch.manual_seed(seed)
    network = UNet(base_channels=2, depth=depth, **options)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return network.double().eval()  # float32 then shows no rounding of sums


NETWORKS = {depth: tiny(depth) for depth in (1, 2, 3)}
IMAGE = np.random.default_rng(0).random((70, 90), np.float32)
FEW = 60 * 60  # pixels per pass: several tiles


def assert_equal(found, expected):
    """In float32: where doubles differ in their last bits, one may round away."""
    np.testing.assert_array_max_ulp(found, expected, 1)


def predicted(network, source, shape=None, **options):
    target = np.full(source.shape if shape is None else shape, -1, np.float32)
    predict_into(network, source, target, **options)
    return target


@given(
    st.sampled_from(sorted(NETWORKS)),
    st.integers(1, 150),
    st.integers(1, 90),
    st.integers(1, 100),
    st.integers(0, 3000),
)
@example(3, 129, 1, 16, 0)
@example(2, 1, 1, 1, 0)
@example(1, 150, 90, 1, 0)
@settings(max_examples=8)
def test_blocks_are_the_whole(depth, height, width, block, more):
    network = NETWORKS[depth]
    image = np.random.default_rng(height).random((height, width), np.float32)
    options = {"max_pixels": network.input_size(2**depth) ** 2 + more}
    found = predicted(network, image, block=block, **options)
    assert_equal(found, predict(network, image, **options))


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.float64])
def test_floats_of_any_kind(dtype):
    image = IMAGE.astype(dtype)
    found = predicted(NETWORKS[2], image, block=40, max_pixels=FEW)
    expected = predict(NETWORKS[2], image, max_pixels=FEW)
    assert_equal(found, expected)


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (1, 3), (2, 2), (3, 4)])
def test_stacks_channels_and_classes(channels, classes):
    network = tiny(2, in_channels=channels, num_classes=classes)
    maps = (classes,) if classes > 2 else ()
    middle = (channels,) if channels > 1 else ()
    images = np.random.default_rng(1).random((3, *middle, 60, 50), np.float32)
    expected = predict(network, images, max_pixels=FEW)
    assert expected.shape == (3, *maps, 60, 50)
    found = predicted(network, images, expected.shape, block=32, max_pixels=FEW)
    assert_equal(found, expected)
    one = predicted(network, images[1], (*maps, 60, 50), block=9, max_pixels=FEW)
    assert_equal(one, expected[1])


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.uint8, 0, 255), (np.uint16, 100, 4095), (np.int16, -50, 50), (bool, 0, 1)],
)
def test_integers_are_scaled_as_told(dtype, low, high):
    numbers = (IMAGE * 300 - 100).astype(dtype)
    scaled = ((numbers.astype(np.float64) - low) / (high - low)).clip(0, 1)
    found = predicted(NETWORKS[1], numbers, block=40, value_range=(low, high))
    expected = predict(NETWORKS[1], scaled.astype(np.float32))
    assert_equal(found, expected)


def test_what_a_block_would_read_again_is_not_written():
    image = IMAGE.copy()
    for target in (image, image[::-1]):
        with pytest.raises(ValueError, match="apart from the source"):
            predict_into(NETWORKS[2], image, target, block=16, max_pixels=FEW)
    assert_equal(image, IMAGE)
    both = np.stack([IMAGE, IMAGE], -1)  # side by side in memory, and apart
    predict_into(NETWORKS[2], both[..., 0], both[..., 1], block=16, max_pixels=FEW)
    assert_equal(both[..., 1], predict(NETWORKS[2], IMAGE, max_pixels=FEW))


def test_tensors_are_refused():
    tensor = torch.from_numpy(IMAGE)
    with pytest.raises(ValueError, match=r"Expected a source .* got a Tensor"):
        predict_into(NETWORKS[2], tensor, IMAGE.copy())
    with pytest.raises(ValueError, match=r"Expected a target .* got torch\.float32"):
        predict_into(NETWORKS[2], IMAGE, tensor)


def test_a_padded_network_takes_one_tile():
    network = tiny(2, padding="same")
    expected = predict(network, IMAGE)
    assert_equal(predicted(network, IMAGE, block=8), expected)
    with pytest.raises(ValueError, match=r"pass max_pixels=6624, .* halo"):
        predicted(network, IMAGE, max_pixels=6623)
    assert_equal(predicted(network, IMAGE, max_pixels=6624), expected)


def test_from_one_memory_map_into_another(tmp_path):
    np.save(tmp_path / "in.npy", (IMAGE * 255).astype(np.uint8))
    source = np.load(tmp_path / "in.npy", mmap_mode="r")
    target = np.lib.format.open_memmap(
        tmp_path / "out.npy", "w+", np.float32, IMAGE.shape
    )
    predict_into(NETWORKS[2], source, target, 40, (0, 255), max_pixels=FEW)
    found = np.load(tmp_path / "out.npy")
    expected = predict(NETWORKS[2], source / np.float32(255), max_pixels=FEW)
    assert_equal(found, expected)
    with pytest.raises(OSError, match=r"cannot be written .* mode='r\+'"):
        predict_into(NETWORKS[2], IMAGE, np.load(tmp_path / "out.npy", mmap_mode="r"))


def test_zarr_and_dask_arrays(tmp_path):
    zarr, dask = pytest.importorskip("zarr"), pytest.importorskip("dask.array")
    source = zarr.create_array(tmp_path / "in", data=IMAGE, chunks=(32, 48))
    options = {"shape": IMAGE.shape, "dtype": "float32", "chunks": (30, 30)}
    target = zarr.create_array(tmp_path / "out", **options)
    expected = predict(NETWORKS[2], IMAGE, max_pixels=FEW)
    predict_into(NETWORKS[2], source, target, 40, max_pixels=FEW)
    assert_equal(target[:], expected)
    target[:] = 0
    predict_into(NETWORKS[2], dask.from_array(source), target, 40, max_pixels=FEW)
    assert_equal(target[:], expected)
    with pytest.raises(ValueError, match="got a dask array: np"):
        predict_into(NETWORKS[2], IMAGE, dask.zeros(IMAGE.shape, dtype="float32"))
    closed = zarr.open_array(tmp_path / "out", mode="r")
    with pytest.raises(OSError, match=r"cannot be written .*read-only"):
        predict_into(NETWORKS[2], IMAGE, closed)


class Drawn:
    """An image of any size that is drawn where it is read, and takes what is written.

    Its values are integers, 0 to 255.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, height, width):
        self.shape = (height, width)
        self.asked = []

    def __getitem__(self, place):
        rows, columns = (np.arange(one.start, one.stop) for one in place)
        self.asked.append(len(rows) * len(columns))
        return (np.sin(rows[:, None] * columns) / 2 + 0.5).astype(np.float32)

    def __setitem__(self, place, numbers):
        assert numbers.shape == tuple(one.stop - one.start for one in place)


def test_memory_does_not_grow_with_the_image():
    """Neither that of a read nor that of NumPy's arrays; torch has one pass's."""
    network = tiny(1)
    peaks, reads = [], []
    for side in (200, 800):
        image, target = Drawn(side, side), Drawn(side, side)
        tracemalloc.start()
        predict_into(network, image, target, block=100, max_pixels=70**2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        reads.append(max(image.asked))
    assert reads[1] <= (100 + 2 * 16) ** 2
    assert peaks[1] < peaks[0] + 100_000  # of which 16 times the blocks are a part
    assert peaks[1] < 800 * 800 * 4 / 2


def counted(network, monkeypatch):
    passes = []
    forward = network.forward
    monkeypatch.setattr(
        network, "forward", lambda batch: passes.append(1) or forward(batch)
    )
    return passes


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """A run that was stopped after its third block, and the passes that it made."""
    network, target = tiny(2), np.zeros(IMAGE.shape, np.float32)
    passes = counted(network, monkeypatch)
    record = tmp_path / "done.json"
    options = {"block": 1, "max_pixels": FEW, "record": record}  # a tile each

    class Stops(Drawn):
        shape = IMAGE.shape

        def __init__(self):
            self.left = 3

        def __getitem__(self, place):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return IMAGE[place]

    with pytest.raises(KeyboardInterrupt):
        predict_into(network, Stops(), target, **options)
    assert len(passes) == 3
    return network, target, passes, options


def test_a_run_goes_on_where_it_was_stopped(half_done):
    network, target, passes, options = half_done
    expected = predict(network, IMAGE, max_pixels=FEW)
    blocks = len(passes) - 3
    passes.clear()
    predict_into(network, IMAGE, target, **options)
    assert_equal(target, expected)
    assert len(passes) == blocks - 3
    passes.clear()
    predict_into(network, IMAGE, target, **options)
    assert not passes
    target[0, 0] = 0.5  # one block is not what was written
    predict_into(network, IMAGE, target, **options)
    assert len(passes) == 1
    assert_equal(target, expected)
    passes.clear()
    fresh = np.zeros_like(target)  # another target has none of them
    predict_into(network, IMAGE, fresh, **options)
    assert_equal(fresh, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": tiny(2, seed=1)}, "another run: network was .* delete the file"),
        ({"source": IMAGE.astype(np.float64)}, "type was float32 and is float64"),
        ({"source": np.where(IMAGE > 0.5, IMAGE, 0.5)}, "at 0, 0 had other values"),
        ({"value_range": (0, 2)}, r"value_range was None and is \[0.0, 2.0\]"),
        ({"block": 80}, "tiles was"),
        ({"max_pixels": 10**6}, "tiles was"),
    ],
)
def test_a_record_of_another_run_is_refused(half_done, changes, message):
    network, target, passes, options = half_done
    before, passes_before = target.copy(), len(passes)
    given = {"network": network, "source": IMAGE, "target": target}
    with pytest.raises(ValueError, match=message):
        predict_into(**given | options | changes)
    assert_equal(target, before)
    assert len(passes) == passes_before
    options["record"].unlink()
    predict_into(**given | options | changes)


def test_a_record_is_whole_or_refused(half_done, tmp_path):
    network, target, _, options = half_done
    assert len(json.loads(options["record"].read_text())["blocks"]) == 3
    for text, message in [("{", "not valid JSON"), ("[]", "of another run")]:
        options["record"].write_text(text)
        with pytest.raises(ValueError, match=message):
            predict_into(network, IMAGE, target, **options)
    with pytest.raises(OSError, match="could not be written"):
        predict_into(network, IMAGE, target, record=tmp_path / "nowhere" / "a.json")


def test_progress_is_shown_with_the_time_left(capsys):
    predicted(NETWORKS[2], IMAGE, block=40, max_pixels=FEW, progress=True)
    assert "block/s" in capsys.readouterr().err
    predicted(NETWORKS[2], IMAGE)
    assert capsys.readouterr().err == ""


# dask


@pytest.mark.parametrize(
    ("depth", "pixels"), [(1, 10), (2, 24), (3, 48), (4, 96), (5, 192)]
)
def test_the_halo_is_the_border_in_whole_pooled_pixels(depth, pixels):
    network = UNet(base_channels=1, depth=depth)
    size = network.input_size(100)
    border = (size - network.output_size(size)) / 2
    assert halo(network) == halo(torch.nn.DataParallel(network)) == pixels
    assert border <= pixels < border + 2**depth + 2
    assert pixels % 2**depth == 0


def by_dask(network, image, sides, **options):
    """The recipe of `halo`, with its options changed."""
    dask = pytest.importorskip("dask.array")
    chunks = [
        (side,) * (length // side - 1) + (side + length % side,)
        for length, side in zip(image.shape, sides, strict=True)
    ]
    given = {"depth": halo(network), "boundary": "none", "allow_rechunk": False}
    return dask.map_overlap(
        lambda part: predict(network, part),
        dask.from_array(image, chunks=tuple(chunks)),
        dtype="float32",
        meta=np.empty((0,) * image.ndim, "float32"),
        **given | options,
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("depth", "side"), [(1, 10), (2, 24), (3, 48), (4, 96)])
def test_chunks_with_their_halo_are_the_whole(depth, side, padding):
    network = tiny(depth, padding=padding)
    image = np.random.default_rng(depth).random((2 * side + 1, 3 * side - 5))
    chunks = by_dask(network, image, (side, side))
    assert chunks.npartitions >= 4
    found = chunks.compute(scheduler="synchronous")
    assert_equal(found, predict(network, image))


def test_other_recipes_are_not_exact():
    """The paper's border, dask's own mirrored border, chunks off the pooling grid."""
    network = tiny(4)
    image = np.random.default_rng(0).random((224, 224))
    expected = predict(network, image)
    for sides, options in [
        ((112, 112), {"depth": 92}),
        ((112, 112), {"boundary": "reflect"}),
        ((111, 112), {}),
    ]:
        found = by_dask(network, image, sides, **options)
        found = found.compute(scheduler="synchronous")
        assert np.abs(found - expected).max() > 0.01
    with pytest.raises(ValueError, match="larger than smallest chunk"):
        by_dask(network, image, (64, 112)).compute()


def test_a_cluster_of_two_processes_gives_the_same():
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("distributed is not installed")
    import distributed

    network = tiny(2)
    stack = np.random.default_rng(0).random((2, 60, 50))
    expected = predict(network, stack)
    dask = pytest.importorskip("dask.array")
    reach = halo(network)
    chunks = dask.map_overlap(
        lambda part: predict(network, part),
        dask.from_array(stack, chunks=((1, 1), (28, 32), (24, 26))),
        depth=(0, reach, reach),
        boundary="none",
        allow_rechunk=False,
        dtype="float32",
        meta=np.empty((0, 0, 0), "float32"),
    )
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        found = chunks.compute()
    assert_equal(found, expected)
    assert math.prod(chunks.numblocks) == 8
