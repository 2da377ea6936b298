"""The book's one plotting style, and its one thing to move.

Colours are of Okabe and Ito's palette, which people with any common colour
blindness can tell apart.
"""

import contextlib
import itertools
import sys
from numbers import Integral, Real

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import ndimage

from unet_lib.plot import slider

COLOURS = {
    "cell": "#56B4E9",
    "membrane": "#E69F00",
    "merge": "#D55E00",  # two true cells that became one
    "split": "#0072B2",  # one true cell that became several
    "tile": "#F0E442",
    "weight": "inferno",  # a colormap: dark is low, and ordered in grey too
}
PALETTE = (  # of cells and of curves; yellow, faint on white, comes last
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#F0E442"),
)
FIGURE_WIDTH = 7.0  # inches; at STYLE's resolution as wide as a page's column
STYLE = {
    "figure.dpi": 120,
    "figure.figsize": (FIGURE_WIDTH, 3.5),
    "figure.constrained_layout.use": True,
    "font.size": 12,  # 9 pixels where a phone shows 7 inches 390 pixels wide
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
    "image.interpolation": "none",
    "image.cmap": "gray",
}
NEIGHBOUR_REACH = 10  # pixels; most membranes in the labels are thinner


def use_style():
    """Set the book's matplotlib style.

    A notebook then stores a figure as PNG, which keeps lines and letters exact, but as
    JPEG where that saves a third or more: micrographs are mostly noise, and as PNG a
    chapter's figures would fill megabytes.
    """
    plt.rcParams.update(STYLE)
    if _notebook() is None:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("png")  # its own formatter first, so that ours replaces it

    def store(wanted):
        def formatter(figure):
            picture = _pixels(figure)
            stored = {kind: slider.encode(picture, kind) for kind in ("png", "jpeg")}
            saves = len(stored["jpeg"]) < len(stored["png"]) * 2 / 3
            return stored[wanted] if saves == (wanted == "jpeg") else None

        return formatter

    for kind in ("png", "jpeg"):
        formatter = _notebook().display_formatter.formatters[f"image/{kind}"]
        formatter.for_type(Figure, store(kind))


def show_images(images, titles=None, columns=None, width=FIGURE_WIDTH):
    """Draw pictures of one size beside each other, without axes, and return the figure.

    The figure does not belong to pyplot: a notebook shows it once, as the value of its
    cell.

    Args:
        images: a sequence of ``(height, width)`` greys or ``(height, width, 3)``
            colours, 0 to 1. The grey range is always 0 to 1, so that equal greys mean
            equal values everywhere.
        titles: one for each image.
        columns: pictures in a row, all by default.
        width: of the figure, in inches.
    """
    images = [np.asarray(image) for image in images]
    for image in images:
        _check_picture(image)
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1:
        raise ValueError(f"expected images of one size, at least one, got {sizes}")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"expected {len(images)} titles, got {len(titles)}")
    columns = len(images) if columns is None else columns
    _check_positive(Integral, columns=columns)
    _check_positive(width=width)
    rows = -(-len(images) // columns)
    height, across = images[0].shape[:2]
    title_height = 0.25 if titles is not None else 0
    row_height = width / columns * height / across + title_height
    figure = Figure(figsize=(width, rows * row_height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image in zip(grid, images, strict=False):  # the last row may be short
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="none")
    for axes, title in zip(grid, titles or (), strict=False):
        axes.set_title(title)
    return figure


def show_weight_map(axes, weights, maximum=None):
    """Draw a weight map with its colour bar on the axes, from 0 to maximum.

    Args:
        axes: matplotlib's.
        weights: ``(height, width)``, not negative.
        maximum: the largest weight by default; name it where maps are compared.
    """
    weights = _check_plane(weights, "weights")
    if weights.min() < 0:
        raise ValueError(f"expected weights of 0 and above, got {weights.min()}")
    if maximum is not None:
        _check_positive(maximum=maximum)
    axes.set_axis_off()
    drawn = axes.imshow(
        weights,
        cmap=COLOURS["weight"],
        vmin=0,
        vmax=weights.max() if maximum is None else maximum,
        interpolation="none",
    )
    axes.figure.colorbar(drawn, ax=axes, label="weight", shrink=0.8)


def overlay(image, mask, colour, alpha=0.5):
    """Tint a grey image where the mask is set.

    Args:
        image: ``(height, width)``, 0 to 1.
        mask: the same shape, nonzero is tinted.
        colour: a key of ``COLOURS`` or any matplotlib colour.
        alpha: 0 leaves the image, 1 hides it.

    Returns:
        ``(height, width, 3)`` float32, 0 to 1.
    """
    mask = _check_plane(mask, "a mask")
    colours = np.broadcast_to(_rgb(colour), (*mask.shape, 3))
    return _blend(image, colours, alpha, mask)


def overlay_labels(image, labels, alpha=0.4):
    """Lay the coloured cells over a grey image.

    Args:
        image: ``(height, width)``, 0 to 1.
        labels: as for `colour_cells`.
        alpha: 0 is the image, 1 the cells.

    Returns:
        ``(height, width, 3)`` float32, 0 to 1.
    """
    return _blend(image, colour_cells(labels), alpha)


def colour_cells(labels, seed=0):
    """Give each cell a colour that differs from its neighbours', and membrane none.

    Cells with pixels at most ``NEIGHBOUR_REACH``, ten, apart are neighbours.

    Args:
        labels: ``(height, width)``; either 1 = cell and 0 = membrane, whose 4-connected
            parts are the cells, or integers that number the cells, one above 1.
        seed: draws among the colours left to a cell.

    Returns:
        ``(height, width, 3)`` float32, 0 to 1; membrane is nearly black.
    """
    labels = _check_plane(labels, "labels")
    if labels.dtype.kind not in "bui" or labels.min() < 0:
        raise ValueError(
            "expected labels as integers of 0 and above, got "
            f"{labels.dtype} from {labels.min()}"
        )
    if labels.max() <= 1:
        cells, count = ndimage.label(labels)  # 4-connected by default
    else:
        names, cells = np.unique(labels, return_inverse=True)
        cells = cells.reshape(labels.shape) + (names[0] != 0)
        count = cells.max()
    neighbours = [set() for _ in range(count + 1)]
    for first, second in _neighbour_pairs(cells, NEIGHBOUR_REACH):
        neighbours[first].add(second)
        neighbours[second].add(first)
    palette = np.array([matplotlib.colors.to_rgb(name) for name in PALETTE])
    random = np.random.default_rng(seed)
    chosen = {}
    table = np.full((count + 1, 3), 0.1, dtype=np.float32)
    # The cell with most neighbours first: it has the fewest colours to choose from.
    for cell in sorted(range(1, count + 1), key=lambda cell: -len(neighbours[cell])):
        taken = {chosen[other] for other in neighbours[cell] if other in chosen}
        free = set(range(len(palette))) - taken or {max(taken, default=0) + 1}
        chosen[cell] = int(random.choice(sorted(free)))
        # Beyond the palette its colours come again, darker.
        again, index = divmod(chosen[cell], len(palette))
        table[cell] = palette[index] * 0.75**again
    return table[cells]


def scale_bar(axes, nanometres, nanometres_per_pixel=4):
    """Draw a bar of so many nanometres at the lower left of an image's axes.

    The challenge's pixels are 4 nm wide.
    """
    _check_positive(nanometres=nanometres, nanometres_per_pixel=nanometres_per_pixel)
    pixels = nanometres / nanometres_per_pixel
    bar = AnchoredSizeBar(
        *(axes.transData, pixels, f"{nanometres:g} nm", "lower left"),
        color="white",
        size_vertical=pixels / 25,
        borderpad=0.4,
        sep=3,
    )
    bar.patch.set(facecolor="black", edgecolor="none", alpha=0.7)
    axes.add_artist(bar)


def outline(axes, top, left, height, width, colour="tile", label=None):
    """Draw a rectangle around these pixels of an image, with a label at its top left.

    Args:
        axes: matplotlib's.
        top: row of the first pixel.
        left: column of the first pixel.
        height: in pixels.
        width: in pixels.
        colour: a key of ``COLOURS`` or any matplotlib colour.
        label: a short text, if any.
    """
    colour = _rgb(colour)
    _check_positive(height=height, width=width)
    # A pixel's centre has whole coordinates, its upper left corner lies at -0.5.
    corner = (left - 0.5, top - 0.5)
    axes.add_patch(
        Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=2)
    )
    if label is not None:
        axes.annotate(
            label,
            corner,
            xytext=(4, -4),
            textcoords="offset points",
            verticalalignment="top",
            color="black",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
        )


def explore(draw, values, alt, start=None, live_values=None, width=640):
    """Show the thing to move: a picture with one slider, or two, above it.

    A page and a recorded notebook show an HTML slider over pictures drawn beforehand,
    which moves without a kernel and without a network. A live notebook shows an
    ipywidgets control that calls `draw` anew.

    Args:
        draw: takes one value of each slider, in order, and returns a matplotlib figure
            or an image, ``(height, width)`` or ``(height, width, 3)``, 0 to 1; all of
            one size.
        values: a dictionary of one or two labels, each with its values. All
            combinations are drawn.
        alt: says what the picture shows; the values are added to it for each picture.
        start: a dictionary of labels and values to start at; else each label's first.
        live_values: as `values`, for the live control; finer steps, for instance.
        width: of a figure's pictures, in pixels.

    Raises:
        ValueError: where the slider would exceed ``slider.MAX_HTML_BYTES``.
    """
    given, values = values, {}
    if isinstance(given, dict) and all(map(np.iterable, given.values())):
        values = {label: list(options) for label, options in given.items()}
    if len(values) not in (1, 2) or not all(values.values()):
        raise ValueError(
            "expected values as a dictionary of one or two labels with their values, "
            f"got {given}"
        )
    start = {label: options[0] for label, options in values.items()} | (start or {})
    live_values = values | (live_values or {})
    _check_positive(Integral, width=width)
    for label in [*start, *live_values]:
        if label not in values:
            raise ValueError(f"expected the labels {list(values)}, got {label!r}")
        if start[label] not in values[label] or start[label] not in live_values[label]:
            raise ValueError(f"{label} cannot start at {start[label]!r}: no such value")

    combinations = list(itertools.product(*values.values()))
    pictures = [_pixels(draw(*chosen), width) for chosen in combinations]
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"expected pictures of one size, got {sorted(sizes)}")
    widest = FIGURE_WIDTH * STYLE["figure.dpi"]
    page = slider.page(pictures, values, alt, start, widest)
    summary = f"{alt} ({' × '.join(values)}: {len(pictures)} pictures)"
    if _notebook() is None:
        print(summary)  # a plain script has nowhere to show it
        return
    from IPython.display import display

    bundle = {"text/plain": summary, "text/html": page}
    if hasattr(_notebook(), "kernel"):
        with contextlib.suppress(ImportError):  # no ipywidgets: the HTML has to do
            control = slider.live_control(
                lambda *chosen: _pixels(draw(*chosen), width), live_values, start
            )
            bundle = control._repr_mimebundle_() | bundle
    display(bundle, raw=True)


def _notebook():
    """Return the IPython shell that runs this code, None outside of one."""
    ipython = sys.modules.get("IPython")  # a shell has imported it already
    return ipython and ipython.get_ipython()


def _pixels(drawn, width=None):
    """Return a figure or an image as (height, width, 3) uint8 and close the figure."""
    if isinstance(drawn, Figure):
        plt.close(drawn)
        if width is not None:
            drawn.set_dpi(width / drawn.get_figwidth())
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3].copy()
    image = np.asarray(drawn)
    _check_picture(image)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    image = np.round(image * 255.0).astype(np.uint8)
    # A small image is enlarged by whole pixels; a browser would blur it.
    factor = 1 if width is None else max(1, width // image.shape[1])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _blend(image, colours, alpha, mask=True):
    image = _check_plane(image, "an image")
    _check_picture(image)
    over = colours.shape[:2]
    if image.shape != over:
        raise ValueError(
            f"expected one shape, got an image {image.shape} and {over} over it"
        )
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha from 0 to 1, got {alpha!r}")
    alpha = np.where(mask, alpha, 0)[..., None]
    blended = image[..., None] * (1 - alpha) + colours * alpha
    return np.clip(blended, 0, 1).astype(np.float32)


def _neighbour_pairs(cells, reach):
    """Return the pairs of different cells that have pixels at most `reach` apart."""
    codes = set()  # first * base + second
    base = int(cells.max(initial=0)) + 1
    height, width = cells.shape
    padded = np.pad(cells, reach)
    # Half of the disk is enough: the other half gives the same pairs.
    for down, right in itertools.product(range(reach + 1), range(-reach, reach + 1)):
        if down**2 + right**2 <= reach**2:
            top, left = reach + down, reach + right
            there = padded[top : top + height, left : left + width]
            differ = (cells != there) & (cells > 0) & (there > 0)
            found = cells[differ].astype(np.int64) * base + there[differ]
            codes.update(np.unique(found).tolist())
    return [divmod(code, base) for code in codes]


def _rgb(colour):
    """Return a key of COLOURS or a matplotlib colour as red, green and blue."""
    found = COLOURS.get(colour, colour) if isinstance(colour, str) else colour
    if not matplotlib.colors.is_color_like(found):
        names = ", ".join(name for name in COLOURS if name != "weight")
        raise ValueError(f"expected {names} or a matplotlib colour, got {colour!r}")
    return matplotlib.colors.to_rgb(found)


def _check_positive(kind=Real, **numbers):
    for name, number in numbers.items():
        if not isinstance(number, kind) or not 0 < number < np.inf:
            what = "a finite number" if kind is Real else "an integer"
            raise ValueError(f"expected {name} as {what} above 0, got {number!r}")


def _check_plane(array, name):
    array = np.asarray(array)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"expected {name} of one slice, (height, width) and not empty, got shape "
            f"{array.shape}"
        )
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        nan = " with NaN or infinity" if array.dtype.kind == "f" else ""
        raise ValueError(f"expected {name} of finite numbers, got {array.dtype}{nan}")
    return array


def _check_picture(image):
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(
            "expected an image of shape (height, width) or (height, width, 3), got "
            f"shape {image.shape}; one image goes into a list"
        )
    numbers = image.size > 0 and image.dtype.kind in "biuf"
    if not numbers or not (image.min() >= 0 and image.max() <= 1):
        found = f"{image.dtype} of shape {image.shape}"
        if numbers:
            found = f"{image.min()} to {image.max()}"
        raise ValueError(f"expected values from 0 to 1, got {found}")
