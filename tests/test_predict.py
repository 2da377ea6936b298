"""Overlap-tile: stitched tiles equal the network run over the mirrored whole."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import map_coordinates

from unet_lib import predict as module
from unet_lib.model import UNet
from unet_lib.predict import mirror_pad, plan_axis, plan_tiles, predict


def tiny(depth, **options):
    """A network in double precision whose biases count too."""
    torch.manual_seed(depth)
    network = UNet(base_channels=2, depth=depth, dropout=0.5, **options).double()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return network.eval()


NETWORKS = {depth: tiny(depth) for depth in (1, 2, 3)}


def mirrored(length, before, after):
    """Indices of a row that goes on mirrored at both ends, the end pixel once."""
    there_and_back = [*range(length), *range(length - 2, 0, -1)]
    return [
        there_and_back[n % len(there_and_back)] for n in range(-before, length + after)
    ]


def whole(network, image):
    """The softmax of class 1 from one pass over the mirrored image."""
    return all_classes(network, image[None])[1]


def all_classes(network, image):
    """The softmax from one pass over an image mirrored, channels first."""
    shape = image.shape[1:]
    sizes = [network.input_size(length) for length in shape]
    borders = [(n - network.output_size(n)) // 2 for n in sizes]
    rows, columns = (
        mirrored(length, border, size - length - border)
        for length, size, border in zip(shape, sizes, borders, strict=True)
    )
    padded = torch.from_numpy(image[:, rows][:, :, columns])[None]
    with torch.no_grad():
        scores = network(padded)[0, :, : shape[0], : shape[1]]
    return (scores.exp() / scores.exp().sum(0)).numpy()


def stitched(network, image, tile, together=1):
    """The same from `predict`'s own parts, before it rounds to float32."""
    axes = plan_tiles(network, image.shape, tile)
    padded = mirror_pad(image[None, None], *axes)
    pixels = together * axes[0].tile * axes[1].tile
    with torch.no_grad():
        cell = module.stitch(network, padded, *axes, pixels)
    assert cell.shape[2:] == tuple(axis.padded - 2 * axis.border for axis in axes)
    height, width = image.shape
    return cell[0, 0, :height, :width]


def tiles_for(network, image):
    """All legal tiles up to two steps above what covers the image at once."""
    step = 2**network.depth
    most = network.input_size(max(image.shape)) + 2 * step
    return network.valid_sizes(network.input_size(step), most)


lengths = st.integers(1, 33)


@given(st.data(), st.sampled_from(sorted(NETWORKS)), lengths, lengths)
@example(None, 1, 1, 1)
@example(None, 3, 1, 33)
@example(None, 2, 2, 1)
@settings(max_examples=25)
def test_stitched_equals_whole(data, depth, height, width):
    network = NETWORKS[depth]
    image = np.random.default_rng(height * 100 + width).random((height, width))
    expected = whole(network, image)
    tiles = tiles_for(network, image)
    drawn = tiles if data is None else {data.draw(st.sampled_from(tiles)), tiles[0]}
    together = 4 if data is None else data.draw(st.integers(1, 9))
    for tile in drawn:
        np.testing.assert_allclose(
            stitched(network, image, tile, together), expected, rtol=0, atol=1e-10
        )
    np.testing.assert_allclose(predict(network, image), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("depth", "shape"), [(1, (9, 14)), (2, (21, 13)), (3, (17, 30))]
)
def test_every_legal_tile(depth, shape):
    network = NETWORKS[depth]
    image = np.random.default_rng(depth).random(shape)
    expected = whole(network, image)
    tiles = tiles_for(network, image)
    assert len(tiles) > 3
    counts = set()
    for tile in tiles:
        rows, columns = plan_tiles(network, shape, tile)
        counts.add(rows.tiles * columns.tiles)
        np.testing.assert_allclose(
            stitched(network, image, tile), expected, rtol=0, atol=1e-10
        )
        ours = predict(network, image, tile=tile)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-7)
    assert 1 in counts
    assert max(counts) >= 4


def test_a_stride_off_the_pooling_grid_would_differ():
    """The trap: side by side with stride 388, not 384, tiles pool other pixels."""
    network = NETWORKS[2]
    tile = next(
        n for n in network.valid_sizes(60, 100) if network.output_size(n) % 4 == 0
    )
    good = plan_axis(network, 3 * network.output_size(tile), tile)
    assert good.stride == good.output
    image = np.random.default_rng(0).random((good.padded, good.padded))
    with torch.no_grad():
        pass_ = network(torch.from_numpy(image)[None, None])[0]
        for stride, same in (
            (good.stride, True),
            (good.stride - 4, True),
            (good.stride - 2, False),
        ):
            part = torch.from_numpy(image[stride : stride + tile, :tile].copy())
            scores = network(part[None, None])[0]
            expected = pass_[:, stride : stride + good.output, : good.output]
            assert torch.allclose(scores, expected, atol=1e-10) is same


def test_the_papers_stride():
    network = UNet(base_channels=1)
    axis = plan_axis(network, 512, 572)
    assert (axis.output, axis.stride, axis.tiles, axis.border) == (388, 384, 2, 92)
    rows, columns = plan_tiles(network, (512, 512))
    assert (rows.tile, rows.tiles, columns.tile, columns.tiles) == (700, 1, 700, 1)


@given(
    network=st.sampled_from([*NETWORKS.values()]),
    length=st.integers(1, 200),
    data=st.data(),
)
def test_tiles_cover_without_gap(network, length, data):
    step = 2**network.depth
    least = network.input_size(step)
    tile = data.draw(st.sampled_from(network.valid_sizes(least, 150)))
    axis = plan_axis(network, length, tile)
    assert axis.output == network.output_size(tile)
    assert axis.stride % step == 0
    assert 0 < axis.stride <= axis.output < axis.stride + step
    covered = (axis.tiles - 1) * axis.stride + axis.output
    assert covered >= length
    assert axis.tiles == 1 or covered - axis.stride < length
    assert axis.padded == covered + 2 * axis.border


def pixels(plan):
    return math.prod(axis.tiles * axis.tile for axis in plan)


@given(
    network=st.sampled_from([*NETWORKS.values()]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    extra=st.integers(0, 6000),
)
@settings(max_examples=40)
def test_the_plan_is_the_cheapest_within_the_bound(network, size, extra):
    legal = network.valid_sizes(1, network.input_size(70))
    least = network.input_size(2**network.depth)
    bound = least**2 + extra
    costs = []
    for tiles in itertools.product(legal, legal):
        if math.prod(tiles) > bound:
            continue
        try:
            plan = [plan_axis(network, *pair) for pair in zip(size, tiles, strict=True)]
        except ValueError:  # too small to be stitched
            continue
        costs.append(pixels(plan))
    plan = plan_tiles(network, size, max_pixels=bound)
    assert math.prod(axis.tile for axis in plan) <= bound
    assert pixels(plan) == min(costs)


def spy(monkeypatch, network):
    """Record the shapes that reach the network."""
    shapes = []
    forward = network.forward

    def recorded(images):
        shapes.append(tuple(images.shape))
        return forward(images)

    monkeypatch.setattr(network, "forward", recorded)
    return shapes


@pytest.mark.parametrize("bound", [20**2, 28**2, 40 * 50, 10**6])
def test_no_pass_is_above_the_bound(monkeypatch, bound):
    network = tiny(2)
    bound = max(bound, network.input_size(4) ** 2)
    images = np.random.default_rng(1).random((3, 23, 31))
    expected = [predict(network, image) for image in images]
    shapes = spy(monkeypatch, network)
    np.testing.assert_allclose(
        predict(network, images, max_pixels=bound), expected, atol=1e-7
    )
    passes = [math.prod(shape) for shape in shapes]
    assert max(passes) <= bound
    assert (len(passes) == 1) == (bound == 10**6)
    # No pass is left emptier than it must be, but the last ones of a slice.
    smallest = min(h * w for _, _, h, w in shapes)
    assert max(passes) > bound - smallest or bound == 10**6
    with pytest.raises(ValueError, match=r"take max_pixels=\d+ or more"):
        predict(network, images, max_pixels=network.input_size(4) ** 2 - 1)


def test_slices_of_few_columns_are_not_color():
    """Below 16 rows of 3 or 4 pixels they are slices, and so are channels first."""
    for shape in [(15, 20, 3), (20, 15, 4), (3, 40, 50), (40, 50, 5), (50, 3)]:
        assert predict(NETWORKS[1], np.zeros(shape)).shape == shape


@pytest.mark.parametrize("versions", [1, 7, 8])
def test_no_more_is_moved_than_the_bound(monkeypatch, versions):
    """Images and scores stay in the host's memory, all but the tiles of a pass."""
    network = tiny(2)
    moved = []
    to = torch.Tensor.to

    def recorded(tensor, *where, **options):
        if torch.device("cpu") in where or network.classify.weight in where:
            moved.append(tensor.numel())
        return to(tensor, *where, **options)

    bound = network.input_size(16) ** 2
    shapes = spy(monkeypatch, network)
    monkeypatch.setattr(torch.Tensor, "to", recorded)
    predict(network, np.zeros((2, 40, 30)), versions=versions, max_pixels=bound)
    assert moved == [math.prod(shape) for shape in shapes]
    assert len(moved) > versions
    assert max(moved) <= bound


ERRORS = [
    lambda: torch.empty(10**14),  # the CPU's own
    lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried")),
    lambda: (_ for _ in ()).throw(RuntimeError("MPS backend out of memory (MPS")),
]


@pytest.mark.parametrize(
    ("fail", "options"),
    [*((fail, {}) for fail in ERRORS), (ERRORS[1], {"tile": 92, "versions": 7})],
)
def test_out_of_memory_is_told_and_its_advice_leads_out(monkeypatch, fail, options):
    network, images = tiny(2), np.random.default_rng(0).random((2, 30, 26))
    expected = predict(network, images, versions=options.get("versions", 1))
    forward, available = network.forward, network.input_size(12) ** 2

    def limited(batch):
        return fail() if batch[:, 0].numel() > available else forward(batch)

    monkeypatch.setattr(network, "forward", limited)
    with pytest.raises(MemoryError, match=r"cpu does not hold .*and no tile"):
        predict(network, images, **options)
    for _ in range(20):
        try:
            found = predict(network, images, **options)
        except MemoryError as error:
            message = str(error)
            less = int(re.search(r"max_pixels=(\d+)", message)[1])
            assert less < options.get("max_pixels", less + 1)
            options = {k: v for k, v in options.items() if k != "tile"}
            options["max_pixels"] = less
        else:
            break
    np.testing.assert_allclose(found, expected, atol=2e-7)


def test_where_no_smaller_pass_is_possible_none_is_named(monkeypatch):
    network = tiny(1, padding="same")
    monkeypatch.setattr(network, "forward", lambda batch: torch.empty(10**14))
    with pytest.raises(MemoryError, match=r"\)\. Take network\.bfloat16\(\)"):
        predict(network, np.zeros((8, 8)))


def test_other_errors_stay_what_they_are(monkeypatch):
    network = tiny(1)

    def fails(batch):
        raise RuntimeError("cuDNN error")

    monkeypatch.setattr(network, "forward", fails)
    with pytest.raises(RuntimeError, match="cuDNN error"):
        predict(network, np.zeros((8, 8)))


def test_a_wrapped_network_predicts_the_same():
    network = tiny(1)
    image = np.random.default_rng(1).random((9, 12))
    expected = predict(network, image)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    for wrapped in (torch.nn.DataParallel(network), averaged):
        wrapped.train()
        np.testing.assert_allclose(predict(wrapped, image), expected, atol=1e-7)
        assert not wrapped.training
    with pytest.raises(ValueError, match=r"a UNet, or one in .* got Conv2d"):
        predict(torch.nn.Conv2d(1, 2, 3), image)


def test_each_slice_is_mirrored_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        module, "mirror_pad", lambda *args: calls.append(1) or mirror_pad(*args)
    )
    network = tiny(1)
    shapes = spy(monkeypatch, network)
    tile = network.input_size(8)
    predict(network, np.zeros((3, 20, 20)), tile=tile, max_pixels=9 * tile**2)
    assert len(calls) == 3
    assert [batch for batch, *_ in shapes] == [9, 9, 9]


@given(lengths, lengths)
def test_mirrored_border(height, width):
    network = NETWORKS[2]
    image = np.arange(height * width, dtype=float).reshape(height, width)
    axes = plan_tiles(network, image.shape)
    rows, columns = (
        mirrored(length, axis.border, axis.padded - axis.border - length)
        for length, axis in zip(image.shape, axes, strict=True)
    )
    np.testing.assert_array_equal(
        mirror_pad(image, *axes), image[np.ix_(rows, columns)]
    )


def test_a_stack_is_its_slices():
    network = NETWORKS[2]
    images = np.random.default_rng(4).random((3, 11, 19), np.float32)
    before = images.copy()
    probabilities = predict(network, images)
    assert probabilities.shape == images.shape
    assert probabilities.dtype == np.float32
    assert 0 <= probabilities.min() < probabilities.max() <= 1
    for image, result in zip(images, probabilities, strict=True):
        np.testing.assert_allclose(predict(network, image), result, atol=1e-7)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("shape", [(13, 21), (16, 16), (1, 5)])
def test_eight_versions_are_the_mean_of_eight(shape):
    network = NETWORKS[2]
    image = np.random.default_rng(5).random(shape)
    parts = []
    for turns, flip in itertools.product(range(4), (False, True)):
        turned = np.rot90(image, turns)
        turned = np.ascontiguousarray(np.flipud(turned) if flip else turned)
        result = whole(network, turned)
        result = np.flipud(result) if flip else result
        parts.append(np.rot90(result, -turns))
    ours = predict(network, image, versions=8)
    np.testing.assert_allclose(ours, np.mean(parts, 0), rtol=0, atol=1e-7)
    assert np.abs(ours - parts[0]).max() > 1e-4


def rotated_by_hand(network, image, angle):
    """Turn a slice that is mirrored far out, predict without tiles, turn it back."""
    height, width = image.shape
    far = 200
    rows, columns = mirrored(height, far, far), mirrored(width, far, far)
    mirrored_image = image[np.ix_(rows, columns)]
    size = network.input_size(60)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([height - 1, width - 1]) / 2
    # The network's input, pixel by pixel, about the slice's middle. Where the
    # pooling falls must be as in `predict`: the canvas starts at its border.
    canvas = np.ceil(np.abs(turn) @ [height - 1, width - 1]) + 1
    border = (size - network.output_size(size)) // 2
    places = np.indices((size, size)).reshape(2, -1).T - border - (canvas - 1) / 2
    places = places @ turn.T + middle + far
    turned = map_coordinates(mirrored_image, places.T, order=1).reshape(size, size)
    with torch.no_grad():
        scores = network(torch.from_numpy(turned)[None, None])
    cell = torch.softmax(scores, 1)[0, 1].numpy()
    back = np.indices(image.shape).reshape(2, -1).T - middle
    back = back @ turn + (canvas - 1) / 2
    grid = [np.arange(n) for n in cell.shape]
    return RegularGridInterpolator(grid, cell)(back).reshape(image.shape)


@pytest.mark.parametrize("shape", [(13, 21), (16, 16), (1, 5)])
def test_seven_versions_are_the_mean_of_seven_rotations(shape):
    network = NETWORKS[2]
    image = np.random.default_rng(8).random(shape)
    parts = [rotated_by_hand(network, image, 2 * np.pi * k / 7) for k in range(7)]
    np.testing.assert_allclose(parts[0], whole(network, image), atol=1e-10)
    ours = predict(network, image, versions=7)
    np.testing.assert_allclose(ours, np.mean(parts, 0), rtol=0, atol=2e-7)
    tiled = predict(network, image, versions=7, max_pixels=50**2)
    np.testing.assert_allclose(tiled, ours, rtol=0, atol=2e-7)
    assert np.abs(ours - parts[0]).max() > 1e-4


@pytest.mark.parametrize("versions", [1, 7, 8])
@pytest.mark.parametrize(("channels", "classes"), [(1, 4), (3, 2), (2, 3)])
def test_several_channels_and_classes(versions, channels, classes):
    network = tiny(2, in_channels=channels, num_classes=classes)
    images = np.random.default_rng(6).random((2, channels, 9, 12))
    expected = np.stack([all_classes(network, image) for image in images])
    if classes == 2:
        expected = expected[:, 1]
    given = images[:, 0] if channels == 1 else images
    ours = predict(network, given, versions=versions, max_pixels=10**6)
    assert ours.shape == expected.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(
        predict(network, given[1], versions=versions), ours[1], atol=1e-7
    )
    if versions == 1:
        np.testing.assert_allclose(ours, expected, atol=1e-7)
    if classes > 2:
        np.testing.assert_allclose(ours.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ">f4", ">f8", np.longdouble])
@pytest.mark.parametrize("versions", [1, 7, 8])
def test_floats_of_any_kind(dtype, versions):
    image = np.random.default_rng(6).random((9, 12)).astype(dtype)
    ours = predict(NETWORKS[1], image, versions=versions)
    expected = predict(NETWORKS[1], image.astype(np.float64), versions=versions)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_drop_out_is_off():
    network = tiny(2).train()
    image = np.random.default_rng(7).random((9, 12))
    np.testing.assert_array_equal(predict(network, image), predict(network, image))
    np.testing.assert_allclose(
        predict(network, image), whole(network, image), atol=1e-7
    )


def test_progress(capsys):
    images = np.zeros((2, 8, 8))
    predict(NETWORKS[1], images, versions=8, progress=True)
    assert "16/16" in capsys.readouterr().err
    predict(NETWORKS[1], images)
    assert capsys.readouterr().err == ""


def test_a_network_in_bfloat16():
    network = tiny(2).float()
    image = np.random.default_rng(2).random((9, 12), np.float32)
    expected = predict(network, image)
    ours = predict(network.bfloat16(), image)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=0.03)


@pytest.mark.parametrize("versions", [1, 7, 8])
def test_a_gpu_gives_the_same(gpu, versions):
    network = tiny(2).float()
    images = np.random.default_rng(9).random((3, 20, 31), np.float32)
    expected = predict(network, images, versions=versions)
    ours = predict(network.to(gpu), images, versions=versions, max_pixels=50**2)
    np.testing.assert_allclose(ours, expected, atol=4e-3)  # of TF32: 10 of 23 bits


IMAGE = np.zeros((8, 8))
SPOILT = [np.where(np.eye(8) > 0, value, 0.5) for value in (np.nan, np.inf)]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (IMAGE[0], {}, r"got \(8,\)"),
        (IMAGE[None, None], {}, r"got \(1, 1, 8, 8\)"),
        (IMAGE[:0], {}, "at least one pixel"),
        (IMAGE[None][:0], {}, "at least one pixel"),
        (SPOILT[0], {}, "with NaN or infinity"),
        (SPOILT[1], {}, "with NaN or infinity"),
        (IMAGE + 255, {}, "from 255 to 255: pass"),
        (IMAGE - 1, {}, "from -1 to -1"),
        (np.zeros((8, 8), np.uint8), {}, "got uint8 from 0 to 0: pass"),
        (IMAGE > 0, {}, "got bool"),
        (np.full((8, 8), "x"), {}, "floats"),
        (IMAGE, {"tile": 21}, "legal size"),
        (IMAGE, {"tile": 0}, "legal size"),
        (IMAGE, {"max_pixels": 10}, "max_pixels=10"),
        (IMAGE, {"max_pixels": 1e6}, "max_pixels must be an integer"),
        (np.zeros((40, 50, 3)), {}, r"looks like color \(height, width, 3\)"),
        (np.zeros((16, 16, 4)), {}, r"looks like color \(height, width, 4\)"),
        (IMAGE, {"versions": 4}, "1, 7 or 8, not 4"),
        (IMAGE, {"versions": 0}, "1, 7 or 8, not 0"),
    ],
)
def test_images_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        predict(NETWORKS[1], images, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 3}, r"shape \(3, height, width\) or \(slices, 3"),
        ({"num_classes": 1}, "two classes"),
    ],
)
def test_networks_refused(options, message):
    with pytest.raises(ValueError, match=message):
        predict(tiny(1, **options), IMAGE)


@pytest.mark.parametrize("shape", [(20, 30, 3), (20, 3, 30), (20, 3)])
def test_the_advice_on_channels_is_given_where_it_leads_out(shape):
    network, images = tiny(1, in_channels=3), np.zeros(shape)
    with pytest.raises(ValueError, match=r"Expected images of shape \(3, h") as error:
        predict(network, images)
    told = ": pass np.moveaxis(images, -1, -3)." in str(error.value)
    assert told == (shape == (20, 30, 3))
    if told:
        assert predict(network, np.moveaxis(images, -1, -3)).shape == (20, 30)


@pytest.mark.parametrize("shape", [(8, 16), (9, 13), (1, 5)])
def test_a_padded_network_sees_the_whole(shape):
    network = tiny(2, padding="same")
    image = np.random.default_rng(3).random(shape)
    rows, columns = (mirrored(n, 0, -n % 4) for n in shape)
    with torch.no_grad():
        scores = network(torch.from_numpy(image[np.ix_(rows, columns)])[None, None])
    expected = torch.softmax(scores, 1)[0, 1, : shape[0], : shape[1]]
    np.testing.assert_allclose(predict(network, image), expected, atol=1e-7)


def test_tiles_of_a_padded_network_are_refused():
    network = tiny(2, padding="same")
    with pytest.raises(ValueError, match=r"seams: let one tile cover .* at least 12"):
        predict(network, np.zeros((8, 9)), tile=8)
    with pytest.raises(ValueError, match="take max_pixels=96 or more"):
        predict(network, np.zeros((8, 9)), max_pixels=95)


def test_plans_refused():
    network = NETWORKS[3]
    smallest = network.input_size(1)
    assert network.output_size(smallest) < 8
    with pytest.raises(ValueError, match="stitched in steps of 8"):
        plan_axis(network, 30, smallest)
    for size in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match="at least one pixel"):
            plan_tiles(network, size)
    with pytest.raises(ValueError, match=r"got 7\.5: give an integer"):
        plan_tiles(network, (5, 7.5))
