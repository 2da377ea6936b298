"""plot: what is drawn, by its values. Sliders are moved in test_browser.py."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib import pyplot as plt
from PIL import Image
from skimage.measure import label as label_parts

from unet_lib import plot
from unet_lib.plot import slider as sliders

BINARY = arrays.arrays(np.uint8, (12, 12), elements=st.integers(0, 1))
GRAYS = arrays.arrays(np.float32, (12, 12), elements=st.floats(0, 1, width=32))


def gray(value):
    return np.full((8, 8), value, dtype=np.float32)


def slider(draw, values, alt="A square", start=None, notes=None):
    """The HTML that `explore` would show."""
    values = {name: list(options) for name, options in values.items()}
    start = start or {name: options[0] for name, options in values.items()}
    first, *others = values.values()
    combinations = (
        [(a, b) for a in first for b in others[0]] if others else [(a,) for a in first]
    )
    pictures = [plot._pixels(draw(*chosen), 64) for chosen in combinations]
    return sliders.page(pictures, values, alt, start, 700, notes)


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.script = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found[-1][0] == "script":
            self.script += data

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def data(self):
        return json.loads(re.search(r"const data = (\{.*\});", self.script)[1])


# Overlays


@given(image=GRAYS, mask=BINARY, alpha=st.floats(0, 1))
def test_overlay_tints_the_mask_and_leaves_the_rest(image, mask, alpha):
    tinted = plot.overlay(image, mask, "membrane", alpha)
    assert tinted.shape == (12, 12, 3)
    assert tinted.dtype == np.float32
    assert tinted.min() >= 0
    assert tinted.max() <= 1
    rgb = np.array(matplotlib.colors.to_rgb(plot.COLORS["membrane"]))
    for row, column in np.ndindex(12, 12):
        before = image[row, column]
        if mask[row, column]:
            expected = before + alpha * (rgb - before)
            np.testing.assert_allclose(tinted[row, column], expected, atol=1e-6)
        else:
            assert (tinted[row, column] == before).all()


def test_overlay_labels_goes_from_the_image_to_the_cells():
    image, labels = gray(0.25), np.eye(8, dtype=np.uint8)
    assert (plot.overlay_labels(image, labels, alpha=0) == 0.25).all()
    np.testing.assert_array_equal(
        plot.overlay_labels(image, labels, alpha=1), plot.color_cells(labels)
    )


# Cells


def check_colors(cells, colors):
    """Compare pixel by pixel, the slow way."""
    names = np.unique(cells[cells > 0])
    places = {name: np.argwhere(cells == name) for name in names}
    for name in names:
        assert len(np.unique(colors[cells == name], axis=0)) == 1
        assert colors[cells == name].max() > 0.3  # membrane is darker
    for first in names:
        for second in names[names > first]:
            apart = places[first][:, None] - places[second][None]
            if np.sqrt((apart**2).sum(axis=2)).min() <= plot.NEIGHBOR_REACH:
                one, other = tuple(places[first][0]), tuple(places[second][0])
                assert (colors[one] != colors[other]).any()
    assert (colors[cells == 0] == np.float32(0.1)).all()


@settings(max_examples=25, deadline=None)
@given(
    labels=arrays.arrays(np.uint8, (14, 25), elements=st.integers(0, 1)),
    seed=st.integers(0, 9),
)
def test_neighboring_cells_differ(labels, seed):
    colors = plot.color_cells(labels, seed)
    assert colors.dtype == np.float32
    assert colors.min() >= 0
    assert colors.max() <= 1
    check_colors(label_parts(labels, connectivity=1), colors)


@settings(max_examples=25, deadline=None)
@given(cells=arrays.arrays(np.int32, (10, 25), elements=st.sampled_from([0, 2, 5, 9])))
def test_numbered_cells_differ_where_they_touch(cells):
    check_colors(cells, plot.color_cells(cells))


def test_the_seed_fixes_the_colors():
    labels = np.random.default_rng(0).integers(0, 2, (40, 40))
    first = plot.color_cells(labels, seed=3)
    np.testing.assert_array_equal(first, plot.color_cells(labels, seed=3))
    assert (first != plot.color_cells(labels, seed=4)).any()


def halves(row, height=60, width=60):
    """Two cells side by side, split at a column, with a membrane of one pixel."""
    labels = np.ones((height, width), dtype=np.uint8)
    labels[:, row] = 0
    return labels


def test_a_cell_keeps_its_color_from_slice_to_slice():
    stack = [halves(column) for column in (20, 24, 28, 24)]
    drawn = plot.color_stack(stack)
    assert drawn.shape == (4, 60, 60, 3)
    for picture in drawn:
        assert (picture[0, 0] == drawn[0, 0, 0]).all()
        assert (picture[0, -1] == drawn[0, 0, -1]).all()
    assert (drawn[0, 0, 0] != drawn[0, 0, -1]).any()


def test_of_a_split_cell_the_larger_part_keeps_the_color():
    whole = np.ones((60, 60), dtype=np.uint8)
    drawn = plot.color_cells(whole)
    parts = plot.color_cells(halves(20), like=drawn)
    assert (parts[0, -1] == drawn[0, 0]).all()
    assert (parts[0, 0] != drawn[0, 0]).any()
    # And of merged cells the larger gives its color to the whole.
    merged = plot.color_cells(whole, seed=5, like=parts)
    assert (merged == parts[0, -1]).all()


@settings(max_examples=25, deadline=None)
@given(
    labels=arrays.arrays(np.uint8, (2, 14, 25), elements=st.integers(0, 1)),
    seed=st.integers(0, 9),
)
def test_neighbors_differ_whatever_colors_they_claim(labels, seed):
    _, second = plot.color_stack(labels, seed)
    check_colors(label_parts(labels[1], connectivity=1), second)


def test_each_role_has_a_color_of_its_own():
    colors = list(plot.COLORS.values())
    assert len(set(colors)) == len(colors)


# Figures


def test_show_images_draws_each_in_the_fixed_range():
    images = [gray(0.2), gray(0.7), np.zeros((8, 8, 3)), np.ones((8, 8), dtype=bool)]
    figure = plot.show_images(images, ["a", "b", "c", "d"], columns=3)
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == ["a", "b", "c", "d"]
    for axes, image in zip(drawn, images, strict=True):
        assert axes.images[0].get_clim() == (0, 1)
        assert axes.images[0].get_interpolation() == "none"
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert not any(axes.axison for axes in figure.axes)
    assert not plt.get_fignums()  # else a notebook shows it twice


def test_show_images_draws_the_grays_it_is_given():
    figure = plot.show_images([gray(0.0), gray(0.5), gray(1.0)])
    pixels = plot._pixels(figure, 300)
    middle = pixels.shape[0] // 2
    assert abs(pixels[middle, [100, 300, 500], 0] - np.array([0, 127.5, 255])).max() < 1


def test_marks_lie_on_their_pixels():
    figure = plot.show_images([gray(0.5)])
    axes = figure.axes[0]
    plot.outline(axes, top=2, left=1, height=3, width=4, label="tile")
    (box,) = axes.patches
    assert box.get_bbox().extents.tolist() == [0.5, 1.5, 4.5, 4.5]
    plot.scale_bar(axes, nanometers=8)
    (bar,) = axes.artists
    assert bar.size_bar.get_children()[0].get_width() == 2  # pixels of 4 nm
    assert bar.txt_label.get_text() == "8 nm"
    plot._pixels(figure, 300)


def test_weight_maps_share_a_range():
    figure, axes = plt.subplots()
    plot.show_weight_map(axes, np.linspace(1, 9, 64).reshape(8, 8), maximum=12)
    assert axes.images[0].get_clim() == (0, 12)
    assert axes.images[0].get_cmap().name == plot.COLORS["weight"]
    assert figure.axes[1].get_ylabel() == "weight"
    plt.close(figure)
    # Of one size unless asked otherwise, whatever is in them.
    figure, axes = plt.subplots(1, 2)
    for panel, top in zip(axes, (2.0, 30.0), strict=True):
        plot.show_weight_map(panel, np.full((8, 8), top))
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim()
    plt.close(figure)


# The thing to move


def test_a_slider_holds_every_picture():
    values = {"threshold": [0.1, 0.1 + 0.2, 0.5]}
    elements = Elements(slider(gray, values, start={"threshold": 0.5}))
    (control,) = elements.named("input")
    assert control["type"] == "range"
    assert control["aria-label"] == "threshold"
    assert (control["max"], control["value"]) == ("2", "2")
    assert control["aria-valuetext"] == "0.5"
    data = elements.data
    assert data["texts"] == [["0.1", "0.3", "0.5"]]
    assert data["alts"] == [f"A square, threshold {text}" for text in data["texts"][0]]
    means = []
    for frame in data["frames"]:
        stored = base64.b64decode(frame.removeprefix("data:image/webp;base64,"))
        means.append(np.asarray(Image.open(io.BytesIO(stored))).mean() / 255)
    np.testing.assert_allclose(means, [0.1, 0.3, 0.5], atol=0.01)
    # Without scripts the picture at the start is there.
    (picture,) = elements.named("img")
    assert picture["src"] == data["frames"][2]
    assert picture["alt"] == data["alts"][2]


def test_a_slider_needs_nothing_else_and_clashes_with_nothing():
    values = {'<gray> & "w0"': [0.1, 0.9]}
    page = slider(gray, values, alt="</script><b>")
    elements = Elements(page)
    assert elements.named("b") == []
    assert elements.named("input")[0]["aria-label"] == '<gray> & "w0"'
    assert "http" not in page
    assert " id=" not in page
    # The same slider gives the same page, another one another key.
    assert page == slider(gray, values, alt="</script><b>")
    keys = {
        Elements(slider(gray, {name: [0.1, 0.9]})).named("form")[0]["data-explore"]
        for name in "ab"
    }
    assert len(keys) == 2


def test_two_sliders_hold_all_combinations():
    values = {"w0": [0, 1], "sigma": [2, 3, 5]}
    elements = Elements(
        slider(
            lambda w0, sigma: gray((w0 + sigma) / 6),
            values,
            start={"w0": 1, "sigma": 3},
        )
    )
    assert [control["value"] for control in elements.named("input")] == ["1", "1"]
    assert len(elements.data["frames"]) == 6
    assert elements.data["alts"][5] == "A square, w0 1, sigma 5"
    assert elements.named("img")[0]["alt"] == "A square, w0 1, sigma 3"


def test_a_slider_that_is_too_heavy_says_so(monkeypatch):
    monkeypatch.setattr(sliders, "MAX_HTML_BYTES", 3000)
    noise = np.random.default_rng(0).random((64, 64))
    with pytest.raises(ValueError, match=r"2 pictures of 64×64.*fewer values"):
        slider(lambda _: noise, {"x": [0, 1]})


def test_explore_in_a_plain_script(capsys):
    def draw(value):
        figure, axes = plt.subplots()
        axes.plot([0, value])
        return figure

    plot.explore(draw, {"x": [1, 2]}, "A line")
    assert capsys.readouterr().out == "A line (x: 2 pictures)\n"
    assert not plt.get_fignums()


def test_strings_get_buttons_and_numbers_a_slider():
    values = {"network <of>": ["labels", "best"], "slice": [0, 1]}
    page = slider(lambda name, number: gray((name == "best") / 2 + number / 4), values)
    elements = Elements(page)
    kinds = [control["type"] for control in elements.named("input")]
    assert kinds == ["radio", "radio", "range"]
    assert ["checked" in button for button in elements.named("input")[:2]] == [True, 0]
    assert {button["name"] for button in elements.named("input")[:2]} == {
        "network <of>"
    }
    assert len(elements.data["frames"]) == 4


def test_text_is_shown_beside_each_picture():
    notes = ["<b>faint</b>", "<b>bright</b>"]
    elements = Elements(slider(gray, {"x": [0.1, 0.9]}, start={"x": 0.9}, notes=notes))
    assert elements.data["notes"] == notes
    place = elements.found.index(("div", {"data-note": None, "style": "flex:1 1 12em"}))
    assert elements.found[place + 1] == ("b", {})


def test_a_small_image_is_enlarged_by_whole_sharp_pixels(monkeypatch):
    shown = []
    monkeypatch.setattr(plot, "_show_html", lambda page, *_: shown.append(page))
    plot.explore(lambda x: np.full((200, 300), x), {"x": [0.2, 0.8]}, "A field")
    plot.compare(gray(0.2), gray(0.8), ("<dark>", "light"), "A square", width=20)
    field, square = map(Elements, shown)
    assert field.named("form")[0]["style"] == "max-width:600px"
    (picture,) = field.named("img")
    assert (picture["width"], picture["height"]) == ("300", "200")
    assert "image-rendering:pixelated" in picture["style"]
    assert square.named("div")[0]["style"] == "max-width:16px"
    dark, light = square.named("img")
    assert [dark["alt"], light["alt"]] == ["A square: <dark>", "A square: light"]
    for image, value in ((dark, 0.2), (light, 0.8)):
        stored = base64.b64decode(image["src"].partition(",")[2])
        mean = np.asarray(Image.open(io.BytesIO(stored))).mean() / 255
        assert mean == pytest.approx(value, abs=0.01)


def test_a_figure_in_a_slider_has_twice_the_pixels_it_is_shown_at(monkeypatch):
    shown = []
    monkeypatch.setattr(plot, "_show_html", lambda page, *_: shown.append(page))
    plot.explore(lambda x: plt.figure(figsize=(5, 2)), {"x": [1]}, "Nothing", width=250)
    (picture,) = Elements(shown[0]).named("img")
    assert (picture["width"], picture["height"]) == ("500", "200")
    assert "max-width:250px" in shown[0]


def test_a_photograph_is_a_jpeg_and_a_drawing_a_png_of_few_colors():
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert sliders.smallest(noise)[0] == "jpeg"
    drawing = np.full((200, 200, 3), 255, dtype=np.uint8)
    drawing[::20] = (0, 90, 180)
    kind, stored = sliders.smallest(drawing)
    assert kind == "png"
    opened = Image.open(io.BytesIO(stored))
    assert opened.mode == "P"
    np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), drawing)


def test_in_a_notebook(monkeypatch):
    """In a kernel: both forms of the control, figures once each, in small files."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses its own
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipywidgets")
    cells = [
        # As of ipywidgets 7, which Colab has.
        "import ipywidgets\n"
        "if hasattr(ipywidgets.Widget, '_repr_mimebundle_'):\n"
        "    del ipywidgets.Widget._repr_mimebundle_",
        "import numpy as np\nfrom matplotlib import pyplot as plt\n"
        "from unet_lib import plot\nplot.use_style()\n"
        "noise = np.random.default_rng(0).random((512, 512, 3))\n"
        "plot.show_images([noise, noise])",
        "figure, axes = plt.subplots()\naxes.plot([0, 1]);",
        "plot.explore(lambda x: noise * x, {'x': [0.1, 0.9]}, 'Noise',\n"
        "             start={'x': 0.9}, live_values={'x': [0.1, 0.5, 0.9]})",
        # What a hand on the control does.
        "import ipywidgets\n"
        "home = ipywidgets.widgets.widget\n"
        "live = getattr(home, '_instances', None) or ipywidgets.Widget.widgets\n"
        "live = live.values()\n"
        "control, = [w for w in live if isinstance(w, ipywidgets.SelectionSlider)]\n"
        "picture, = [w for w in live if isinstance(w, ipywidgets.Image)]\n"
        "before = picture.value\n"
        "control.value = 0.5\n"
        "control.description, before != picture.value",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells]
    )
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert [len(output) for output in outputs] == [0, 1, 1, 1, 1]
    images, curve, moving, moved = (output[0]["data"] for output in outputs[1:])
    assert set(images) == {"text/plain", "image/jpeg"}
    assert set(curve) == {"text/plain", "image/svg+xml"}
    # Stored at twice the width at which it is shown.
    assert outputs[1][0]["metadata"] == {"image/jpeg": {"width": 700}}
    stored = Image.open(io.BytesIO(base64.b64decode(images["image/jpeg"])))
    assert stored.width == 1400
    assert ElementTree.fromstring(curve["image/svg+xml"]).get("width") == "504pt"
    assert set(moving) == {
        "text/plain",
        "text/html",
        "application/vnd.jupyter.widget-view+json",
    }
    assert len(Elements(moving["text/html"]).data["frames"]) == 2
    assert moved["text/plain"] == "('x', True)"
