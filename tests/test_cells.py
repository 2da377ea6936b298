"""Cells found, measured and scored: against slow loops, by hand and by properties."""

import csv
import json
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from skimage.measure import label

from unet_lib import cli
from unet_lib.cells import SCORES, find_cells, measure_cells, score_cells
from unet_lib.cli.cells import _stored as stored
from unet_lib.data.images import read_labels
from unet_lib.data.tiff import read_tiff, write_tiff
from unet_lib.metrics import THRESHOLDS

shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))


def numbered(low=0, high=4):
    return lambda shape: arrays(np.int32, shape, elements=st.integers(low, high))


pairs = shapes.flatmap(lambda shape: st.tuples(numbered()(shape), numbered()(shape)))
partly = shapes.flatmap(lambda shape: st.tuples(numbered(-1)(shape), numbered()(shape)))


def disk(size, y, x, radius):
    rows, columns = np.indices((size, size))
    return np.hypot(rows - y, columns - x) < radius


# Scores.


def places(labels):
    """The pixels of each cell, as a set, by its number."""
    found = {}
    for place, number in np.ndenumerate(labels):
        if number > 0:
            found.setdefault(int(number), set()).add(place)
    return [found[number] for number in sorted(found)]


def slow(reference, found):
    """The same scores from sets of pixels, pair by pair, as the words define them."""
    cells, others = places(reference), places(found)
    unknown = {place for place, n in np.ndenumerate(reference) if n == -1}
    jaccard = []
    for cell in cells:
        covering = [one for one in others if len(cell & one) > 0.5 * len(cell)]
        assert len(covering) <= 1
        jaccard.append(
            len(cell & covering[0]) / len(cell | covering[0]) if covering else 0.0
        )
    # The best assignment of the pairs, as where the threshold is lower than 0.5.
    table = np.array(
        [[len(a & b) / len(a | b) > 0.5 for b in others] for a in cells]
    ).reshape(len(cells), len(others))
    rows, columns = linear_sum_assignment(table, maximize=True)
    matched = {b for a, b in zip(rows, columns, strict=True) if table[a, b]}
    excused = [
        b
        for b, one in enumerate(others)
        if b not in matched and len(one & unknown) > 0.5 * len(one)
    ]
    cell_pixels, found_pixels = set().union(*cells), set().union(*others) - unknown
    return {
        "jaccard": jaccard,
        "both": len(cell_pixels & found_pixels),
        "either": len(cell_pixels | found_pixels),
        "true": len(matched),
        "false": len(others) - len(matched) - len(excused),
        "missed": len(cells) - len(matched),
        "merges": sum(
            sum(len(a & b) > 0.5 * len(a) for a in cells) > 1 for b in others
        ),
        "splits": sum(
            sum(len(a & b) > 0.5 * len(b) for b in others) > 1 for a in cells
        ),
    }


@given(partly)
@settings(max_examples=60)
def test_scores_equal_the_slow_ones(pair):
    scores, expected = score_cells(*pair), slow(*pair)
    np.testing.assert_allclose(scores.jaccard, expected.pop("jaccard"), rtol=1e-12)
    assert {name: getattr(scores, name) for name in expected} == expected
    true, false, missed = scores.true, scores.false, scores.missed
    if scores.jaccard.size:
        assert scores.seg == pytest.approx(np.mean(scores.jaccard), rel=1e-12)
        assert scores.ap50 == true / (true + false + missed)
        assert scores.f1 == 2 * true / (2 * true + false + missed)
        assert scores.iou == scores.both / scores.either
        assert scores.dice == pytest.approx(2 * scores.iou / (1 + scores.iou))


@given(partly, st.permutations([1, 2, 3, 4]), st.permutations([1, 2, 3, 9]))
def test_identical_labels_score_exactly_1_whatever_their_numbers(pair, one, other):
    reference = pair[0]
    assume((reference > 0).any())
    # -1 is the last of a list, and stays.
    first = np.array([0, *one, -1])[reference]
    second = np.array([0, *other, 0])[reference]
    scores = score_cells(first, second)
    assert [getattr(scores, name) for name in SCORES] == [1.0] * 5
    assert scores.merges == scores.splits == 0


@given(pairs, st.permutations([1, 2, 3, 4]), st.permutations([1, 2, 3, 4]))
def test_numbers_do_not_matter(pair, one, other):
    assume(pair[0].any())
    again = np.array([0, *one])[pair[0]], np.array([0, *other])[pair[1]]
    first, second = score_cells(*pair).to_dict(), score_cells(*again).to_dict()
    first, second = (d | {"jaccard": sorted(d["jaccard"])} for d in (first, second))
    assert first.pop("seg") == pytest.approx(second.pop("seg"), rel=1e-12)
    assert first == second


@given(pairs)
def test_bounds(pair):
    scores = score_cells(*pair)
    for name in SCORES:
        value = getattr(scores, name)
        assert np.isnan(value) or 0 <= value <= 1


def test_a_stack_pools_cells_and_pixels_not_scores():
    reference = np.zeros((2, 4, 4), int)
    reference[0, :2], reference[1, 0, 0], reference[1, 3, 3] = 1, 1, 2
    found = np.zeros_like(reference)
    found[0, :2] = 7
    scores = score_cells(reference, found)
    assert scores.seg == 1 / 3
    assert scores.iou == 8 / 10
    assert [one.seg for one in scores.per_slice] == [1, 0]
    assert (
        score_cells(reference[1], found[1]).to_dict() == scores.per_slice[1].to_dict()
    )


def test_half_a_cell_is_not_enough():
    """More than half of the reference cell; a Jaccard index above one half."""
    half = score_cells([[1, 1, 1, 1]], [[2, 2, 0, 0]])
    assert (half.seg, half.ap50) == (0, 0)
    three = score_cells([[1, 1, 1, 1]], [[2, 2, 2, 0]])
    assert (three.seg, three.ap50, three.f1) == (0.75, 1, 1)


def test_a_merge_and_a_split():
    merged = score_cells([[1, 1, 1, 0, 2, 2]], [[5, 5, 5, 5, 5, 5]])
    assert (merged.merges, merged.splits) == (1, 0)
    # It covers most of both, so both have a Jaccard index.
    assert merged.jaccard.tolist() == [3 / 6, 2 / 6]
    split = score_cells([[5, 5, 5, 5, 5, 5]], [[1, 1, 1, 0, 2, 2]])
    assert (split.merges, split.splits) == (0, 1)
    assert split.seg == 0


def test_what_is_unknown_is_neither_cell_nor_background():
    reference = np.array([[1, 1, 0, -1, -1, -1, -1]])
    alone = score_cells(reference, [[3, 3, 0, 0, 0, 4, 4]])
    assert (alone.iou, alone.ap50, alone.false) == (1, 1, 0)
    # Half in it is not mostly in it.
    beside = score_cells(reference, [[3, 3, 4, 4, 0, 0, 0]])
    assert (beside.iou, beside.ap50, beside.false) == (2 / 3, 1 / 2, 1)
    # One that spreads from a cell into it has all its pixels, as in the challenge.
    spread = score_cells(reference, [[3, 3, 3, 3, 0, 0, 0]])
    assert (spread.seg, spread.iou) == (2 / 4, 2 / 3)


def test_scores_of_nothing():
    empty, cell = np.zeros((3, 3), int), np.eye(3, dtype=int)
    nothing = score_cells(empty, empty)
    assert all(np.isnan(getattr(nothing, name)) for name in SCORES)
    assert json.loads(json.dumps(nothing.to_dict(), allow_nan=False))["seg"] is None
    assert np.isnan(score_cells(empty, cell).seg)
    assert score_cells(empty, cell).ap50 == 0
    assert score_cells(cell, empty).seg == score_cells(cell, empty).iou == 0


def test_large_numbers_take_no_memory():
    large = np.array([[0, 2**31 - 1, 2**31 - 1, 7]])
    assert score_cells(large, large).seg == 1
    assert measure_cells(large)["label"].tolist() == [7, 2**31 - 1]
    numbers = measure_cells(large.astype(np.uint64))["label"]
    assert numbers.dtype == np.int64


# Cells.

maps = shapes.flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(0, 1, width=32))
)


@given(maps, st.floats(0, 1), st.integers(0, 4))
def test_components_are_those_of_scikit_image(probabilities, threshold, smallest):
    found = find_cells(probabilities, threshold, smallest=smallest)
    expected = label(probabilities.astype(float) > threshold, connectivity=1)
    for number in range(1, expected.max() + 1):
        if (expected == number).sum() < smallest:
            expected[expected == number] = 0
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found > 0, expected > 0)
    if found.any():
        assert score_cells(expected, found).seg == 1
    assert set(np.unique(found)) - {0} == set(range(1, found.max() + 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_threshold_is_that_of_the_metrics(dtype):
    """Of the gray values of 8 bits, 51 is 0.2 but for rounding."""
    levels = np.linspace(0, 1, 256, dtype=dtype).reshape(16, 16)
    for threshold in THRESHOLDS[:-1]:
        found = find_cells(levels, float(threshold)) > 0
        np.testing.assert_array_equal(found, levels.astype(float) > threshold)


@given(maps, st.floats(0.1, 5))
@settings(max_examples=40)
def test_a_watershed_splits_components_and_loses_no_pixel(probabilities, h):
    components = find_cells(probabilities)
    split = find_cells(probabilities, watershed=h)
    np.testing.assert_array_equal(split > 0, components > 0)
    for one in range(1, split.max() + 1):
        assert len(set(components[split == one])) == 1
        assert label(split == one, connectivity=1).max() == 1
    np.testing.assert_array_equal(find_cells(probabilities, watershed=99), components)


def test_two_round_cells_are_parted_at_their_neck():
    """Each is 12 pixels deep, the neck between them about 9: a height of 2 parts them,
    one of 5 does not, nor does either part the one cell beside them."""
    cells = disk(80, 20, 20, 12) | disk(80, 20, 36, 12)
    both = cells | disk(80, 60, 40, 14)
    assert find_cells(both * 1.0).max() == 2
    assert find_cells(both * 1.0, watershed=5).max() == 2
    found = find_cells(both * 1.0, watershed=2)
    assert found.max() == 3
    assert found[20, 20] != found[20, 36]
    assert abs(np.diff([(found == n).sum() for n in found[20, [20, 36]]])[0]) < 20


def test_a_small_component_at_the_corner_of_a_large_one_keeps_its_seed():
    both = np.zeros((12, 12))
    both[:9, :9], both[9:, 9:] = 1, 1
    assert find_cells(both, watershed=3).max() == 2


def test_slices_are_taken_one_by_one():
    probabilities = np.random.default_rng(0).random((3, 20, 21), np.float32)
    for options in ({}, {"watershed": 1.0}, {"threshold": 0.7, "smallest": 3}):
        stack = find_cells(probabilities, **options)
        for one, cells in zip(probabilities, stack, strict=True):
            np.testing.assert_array_equal(find_cells(one, **options), cells)


# Sizes.


def test_sizes_are_those_counted():
    cells = np.zeros((2, 9, 9), int)
    cells[0, 1:4, 2:7], cells[1, 5, 5], cells[1, 0, :2] = 3, 1, 8
    table = measure_cells(cells, pixel_size=(0.5, 0.25), unit="nm")
    assert table["slice"].tolist() == [0, 1, 1]
    assert table["label"].tolist() == [3, 1, 8]
    assert table["area_px"].tolist() == [15, 1, 2]
    assert table["centroid_y"].tolist() == [2, 5, 0]
    assert table["centroid_x"].tolist() == [4, 5, 0.5]
    np.testing.assert_allclose(table["area_nm2"], [15 / 8, 1 / 8, 2 / 8])
    circle = np.pi * (table["diameter_nm"] / 2) ** 2
    np.testing.assert_allclose(circle, table["area_nm2"])
    assert "area_µm2" not in table
    assert set(map(len, table.values())) == {3}


def test_sizes_of_no_cell():
    table = measure_cells(np.zeros((4, 4), int))
    assert set(map(len, table.values())) == {0}
    assert list(table) == list(measure_cells(np.eye(4, dtype=int)))


def test_the_axes_of_an_ellipse():
    rows, columns = np.indices((80, 80)) - 40
    table = measure_cells((rows / 30) ** 2 + (columns / 15) ** 2 < 1)
    assert table["major_px"][0] == pytest.approx(60, rel=0.02)
    assert table["minor_px"][0] == pytest.approx(30, rel=0.02)


def test_without_scikit_image(monkeypatch):
    for name in [one for one in sys.modules if one.startswith("skimage")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert find_cells(np.eye(2)).max() == 2
    calls = (lambda: find_cells(np.eye(2), watershed=1), lambda: measure_cells([[1]]))
    for call in calls:
        with pytest.raises(ImportError, match=r'pip install "unet-lib\[cells\]"'):
            call()


# Commands.


@pytest.fixture
def probabilities(tmp_path):
    """A stack of two slices with two touching cells and a speck, 0.2 µm a pixel."""
    cells = disk(40, 14, 12, 9) | disk(40, 14, 27, 9)
    stack = np.stack([cells, disk(40, 20, 20, 6)]) * np.float32(0.9)
    stack[1, 39, 39] = 1
    path = tmp_path / "probabilities.tif"
    write_tiff(path, stack.astype(np.float32), "TYX", (None, 0.2, 0.2), "µm")
    return path


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_labels_and_sizes(probabilities, tmp_path, capsys):
    output = tmp_path / "cells.tif"
    command = ["cells", str(probabilities), str(output)]
    assert cli.main([*command, "--watershed", "1", "--smallest", "5"]) == 0
    assert "3 cells in 2 slices" in capsys.readouterr().out
    labels = read_labels(output, binary=False)
    assert (labels.axes, labels.unit) == ("TYX", "µm")
    assert labels.pixel_size == (None, 0.2, 0.2)
    assert read_tiff(output).dtype == np.uint16
    expected = find_cells(read_tiff(probabilities), 0.5, 1, 5)
    np.testing.assert_array_equal(labels.pixels, expected)
    rows = rows_of(tmp_path / "cells.csv")
    table = measure_cells(expected, (0.2, 0.2))
    assert list(rows[0]) == list(table)
    for name, column in table.items():
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, column, rtol=1e-5)


def test_sizes_of_a_folder_name_its_files(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    for name, radius in (("b_10", 6), ("b_2", 4)):
        one = disk(20, 10, 10, radius).astype(np.float32)
        write_tiff(folder / f"{name}.tif", one, "YX")
    assert cli.main(["cells", str(folder), str(tmp_path / "cells.tif")]) == 0
    rows = rows_of(tmp_path / "cells.csv")
    areas = {row["file"]: float(row["area_px"]) for row in rows}
    assert areas == {
        f"b_{number}.tif": disk(20, 10, 10, radius).sum()
        for number, radius in ((2, 4), (10, 6))
    }


def test_the_command_without_options_gives_connected_components(
    probabilities, tmp_path, capsys
):
    output = tmp_path / "cells.tif"
    command = ["cells", str(probabilities), str(output)]
    assert cli.main([*command, "--sizes", str(tmp_path / "sizes.csv")]) == 0
    assert len(rows_of(tmp_path / "sizes.csv")) == 3
    assert cli.main(command) == 1
    assert "exists: give another name, or add --overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--threshold", "2"]) == 1
    assert cli.main([*command, "--overwrite", "--threshold", "0.95"]) == 0
    assert read_tiff(output).max() == 1


def test_more_cells_than_16_bits_count(tmp_path):
    """Fiji's label images of more numbers are 32-bit floats, whole to 2**24."""
    labels = np.arange(70_000, dtype=np.int32).reshape(1, 100, 700)
    assert stored(labels[:, :50]).dtype == np.uint16
    assert stored(labels).dtype == np.float32
    write_tiff(tmp_path / "labels.tif", stored(labels), "ZYX")
    again = read_labels(tmp_path / "labels.tif", binary=False).pixels
    np.testing.assert_array_equal(again, labels)


def test_instances_are_evaluated(probabilities, tmp_path, capsys):
    labels, found = tmp_path / "labels.tif", tmp_path / "cells.tif"
    for path, options in ((labels, ["--watershed", "1"]), (found, [])):
        assert cli.main(["cells", str(probabilities), str(path), *options]) == 0
    capsys.readouterr()
    command = ["evaluate", str(labels), str(found), "--instances"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    record = json.loads((tmp_path / "cells.evaluation.json").read_text("utf-8"))
    expected = score_cells(
        *(read_labels(path, binary=False).pixels for path in (labels, found))
    )
    assert record == {
        "labels": "labels.tif",
        "found": "cells.tif",
        "shape": [2, 40, 40],
        **expected.to_dict(),
    }
    lines = captured.out.splitlines()
    assert lines[0].split()[:3] == ["slice", "cells", "SEG"]
    first, second, all_of_them = (line.split() for line in lines[1:4])
    assert first[:3] == ["0", "2", f"{expected.per_slice[0].seg:.4f}"]
    assert second[:3] == ["1", "2", "1.0000"]
    assert all_of_them[:3] == ["all", "4", f"{expected.seg:.4f}"]


@pytest.mark.parametrize("options", [[], ["--instances"]])
def test_files_of_two_folders_are_evaluated_by_name(options, tmp_path, capsys):
    labels, found = tmp_path / "labels", tmp_path / "found"
    for folder, end in ((labels, "_mask"), (found, "")):
        folder.mkdir()
        for name, width in (("a", 3), ("a_b", 5), ("b", 7)):
            cell = np.zeros((9, 9), np.uint8)
            cell[1:8, 1:width] = 1
            write_tiff(folder / f"{name}{end}.tif", cell * np.float32(1), "YX")
    command = ["evaluate", str(labels), str(found), *options]
    assert cli.main(command) == 0
    record = json.loads((tmp_path / "found.evaluation.json").read_text("utf-8"))
    assert record["seg"] == 1 if options else record["figures"]["v_rand"]["value"] == 1
    (found / "b.tif").rename(found / "c.tif")
    assert cli.main([*command, "--overwrite"]) == 1
    said = capsys.readouterr().err
    assert "without labels: c.tif; without an image: b_mask.tif" in said


def test_a_number_for_unknown_pixels_is_evaluated_as_minus_one(tmp_path, capsys):
    labels, found = np.zeros((2, 9, 9), np.uint16)
    labels[1:4, 1:8], labels[5:] = 7, 65535
    found[1:4, 1:7], found[6:8, 1:5] = 1, 2
    for name, one in (("labels", labels), ("found", found)):
        write_tiff(tmp_path / f"{name}.tif", one, "YX")
    command = [str(tmp_path / f"{name}.tif") for name in ("labels", "found")]
    assert cli.main(["evaluate", *command, "--instances", "--unknown", "65535"]) == 0
    record = json.loads((tmp_path / "found.evaluation.json").read_text("utf-8"))
    known = np.where(labels == 65535, -1, labels.astype(int))
    assert record["seg"] == score_cells(known, found.astype(int)).seg == 6 / 7
    assert record["false"] == 0
    assert cli.main(["evaluate", *command, "--unknown", "65535", "--overwrite"]) == 1
    assert "leave it out for binary labels" in capsys.readouterr().err


def test_binary_labels_given_as_instances_are_said(tmp_path, capsys):
    binary = np.zeros((9, 9), np.uint8)
    for y, x in product((0, 4), (0, 4)):
        binary[y : y + 3, x : x + 3] = 255
    for name in ("labels", "found"):
        write_tiff(tmp_path / f"{name}.tif", binary, "YX")
    command = [str(tmp_path / f"{name}.tif") for name in ("labels", "found")]
    assert cli.main(["evaluate", *command, "--instances"]) == 0
    assert "one number in 4 separate pieces" in capsys.readouterr().err
