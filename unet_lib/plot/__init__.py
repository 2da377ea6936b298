"""The plotting style of the book, and its interactive figures.

Figures are stored at twice the width at which a page shows them, so that they are sharp
on every screen.
"""

import contextlib
import io
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from unet_lib._checks import check_plane, found, is_real, is_whole
from unet_lib.plot import slider
from unet_lib.plot.colors import (
    COLORS,
    NEIGHBOR_REACH,
    PALETTE,
    check_picture,
    color_cells,
    color_stack,
    overlay,
    overlay_labels,
    rgb,
)

__all__ = [
    "COLORS",
    "FIGURE_WIDTH",
    "NEIGHBOR_REACH",
    "PALETTE",
    "color_cells",
    "color_stack",
    "compare",
    "explore",
    "outline",
    "overlay",
    "overlay_labels",
    "scale_bar",
    "show_images",
    "show_weight_map",
    "use_style",
]

FIGURE_WIDTH = 7.0  # inches; at STYLE's resolution as wide as a page's column
COLUMN = 700  # CSS pixels
SHARPNESS = 2  # stored pixels for each CSS pixel
LARGEST_SVG = 100_000  # bytes; a drawing that takes more is stored as pixels
# The top of every weight map's scale: the paper's default, w0 = 10, ends just below.
WEIGHT_MAXIMUM = 12
STYLE: dict[str, Any] = {
    "figure.dpi": COLUMN / FIGURE_WIDTH,
    "figure.figsize": (FIGURE_WIDTH, 3.5),
    "figure.constrained_layout.use": True,
    "font.size": 12,  # 9 pixels where a phone shows 7 inches 390 pixels wide
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=PALETTE),
    "image.interpolation": "none",
    "image.cmap": "gray",
    "svg.hashsalt": "unet_lib",  # the same drawing gives the same file
}


def use_style() -> None:
    """Set the book's matplotlib style.

    A notebook then stores a figure without images as SVG, if the file is small. It
    stores other figures at twice the width at which it shows them: as PNG, which keeps
    lines and letters exact, or as JPEG if that saves a fifth or more, since micrographs
    are mostly noise.
    """
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    if _notebook() is None:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("png")  # first the backend's own formatters, then ours
    formatter = _notebook().display_formatter
    formatter.formatters["image/png"].pop(Figure)
    formatter.mimebundle_formatter.for_type(Figure, _bundle)


def show_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    width: float = FIGURE_WIDTH,
) -> Figure:
    """Draw images of the same size side by side, without axes, and return the figure.

    The figure does not belong to pyplot: a notebook shows it once, as the value of its
    cell.

    Args:
        images: gray ``(height, width)`` or color ``(height, width, 3)``, 0 to 1. The
            gray scale always runs from 0 to 1, so that equal grays mean equal values
            everywhere.
        titles: one title per image.
        columns: the number of images in a row, all by default.
        width: the width of the figure in inches.
    """
    images = [check_picture(image) for image in images]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1:
        raise ValueError(f"Expected images of one size, at least one, got {sizes}.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"Expected {len(images)} titles, got {len(titles)}.")
    columns = len(images) if columns is None else columns
    _check_positive(is_whole, columns=columns)
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


def show_weight_map(
    axes: Axes, weights: np.ndarray, maximum: float = WEIGHT_MAXIMUM
) -> None:
    """Draw a weight map with its color bar on the axes, from 0 to `maximum`.

    Args:
        axes: the matplotlib axes to draw on.
        weights: ``(height, width)``, not negative.
        maximum: the top of the scale, by default the same for all maps; weights above
            it get the color of the top.
    """
    weights = check_plane(weights, "weights")
    if weights.min() < 0:
        raise ValueError(f"Expected weights of 0 and above, got {found(weights)}.")
    _check_positive(maximum=maximum)
    axes.set_axis_off()
    drawn = axes.imshow(
        weights, cmap=COLORS["weight"], vmin=0, vmax=maximum, interpolation="none"
    )
    above = "max" if weights.max() > maximum else "neither"
    axes.figure.colorbar(drawn, ax=axes, label="weight", shrink=0.8, extend=above)


def scale_bar(axes: Axes, nanometers: float, nanometers_per_pixel: float = 4) -> None:
    """Draw a scale bar of this length at the lower left of an image's axes.

    The pixels of the challenge are 4 nm wide.
    """
    _check_positive(nanometers=nanometers, nanometers_per_pixel=nanometers_per_pixel)
    pixels = nanometers / nanometers_per_pixel
    bar = AnchoredSizeBar(
        *(axes.transData, pixels, f"{nanometers:g} nm", "lower left"),
        color="white",
        size_vertical=pixels / 25,
        borderpad=0.4,
        sep=3,
    )
    bar.patch.set(facecolor="black", edgecolor="none", alpha=0.7)
    axes.add_artist(bar)


def outline(
    axes: Axes,
    top: float,
    left: float,
    height: float,
    width: float,
    color: str = "tile",
    label: str | None = None,
) -> None:
    """Draw a rectangle around these pixels of an image, with a label at its top left.

    Args:
        axes: the matplotlib axes to draw on.
        top: row of the first pixel.
        left: column of the first pixel.
        height: height in pixels.
        width: width in pixels.
        color: a key of ``COLORS`` or any matplotlib color.
        label: a short text, or None.
    """
    drawn_in = rgb(color)
    _check_positive(height=height, width=width)
    # A pixel's center has whole coordinates, its upper left corner lies at -0.5.
    corner = (left - 0.5, top - 0.5)
    axes.add_patch(
        Rectangle(corner, width, height, fill=False, edgecolor=drawn_in, linewidth=2)
    )
    if label is not None:
        axes.annotate(
            label,
            corner,
            xytext=(4, -4),
            textcoords="offset points",
            verticalalignment="top",
            color="black",
            bbox={"facecolor": drawn_in, "edgecolor": "none", "pad": 1.5},
        )


def explore(
    draw: Callable[..., Figure | np.ndarray],
    values: dict[str, Iterable[Any]],
    alt: str,
    start: dict | None = None,
    live_values: dict[str, Iterable] | None = None,
    width: int = COLUMN,
    text: Callable[..., str] | None = None,
) -> None:
    """Show an interactive figure: a picture with one or two controls above it.

    Numbers get a slider. Strings, which have no order, get one button each. A page and
    a recorded notebook show HTML with pictures drawn beforehand, which needs neither a
    kernel nor a connection. A live notebook shows ipywidgets controls that call `draw`
    after each change.

    Args:
        draw: a function that takes one value per control, in order, and returns a
            matplotlib figure or an image, ``(height, width)`` or ``(height, width,
            3)``, 0 to 1. All results must have the same size.
        values: a dictionary of one or two labels, each with its values. All
            combinations are drawn.
        alt: a text that says what the picture shows; for each picture, its values are
            added.
        start: a dictionary from labels to the values to start at; by default, the first
            value of each label.
        live_values: like `values`, but for the live control, for instance with finer
            steps.
        width: the width of the picture on a page in CSS pixels. An image is enlarged by
            a whole number to at most this width.
        text: a function that takes the same values as `draw` and returns HTML to show
            beside the picture.

    Raises:
        ValueError: if the HTML would exceed ``slider.MAX_HTML_BYTES``.
    """
    stops: dict[str, list[Any]] = {}
    if isinstance(values, dict) and all(map(np.iterable, values.values())):
        stops = {label: list(options) for label, options in values.items()}
    if len(stops) not in (1, 2) or not all(stops.values()):
        raise ValueError(
            "Expected values as a dictionary of one or two labels with their values, "
            f"got {values}."
        )
    start = {label: options[0] for label, options in stops.items()} | (start or {})
    live_stops = stops | {key: list(of) for key, of in (live_values or {}).items()}
    _check_positive(is_whole, width=width)
    for label in [*start, *live_stops]:
        if label not in stops:
            raise ValueError(f"Expected the labels {list(stops)}, got {label!r}.")
        if start[label] not in stops[label] or start[label] not in live_stops[label]:
            raise ValueError(
                f"{label} cannot start at {start[label]!r}: no such value."
            )

    combinations = list(itertools.product(*stops.values()))
    pictures, shown = _drawn([draw(*chosen) for chosen in combinations], width)
    notes = [text(*chosen) for chosen in combinations] if text else None
    summary = f"{alt} ({' × '.join(stops)}: {len(pictures)} pictures)"
    page = slider.page(pictures, stops, alt, start, shown, notes)
    _show_html(
        page,
        summary,
        lambda: slider.live_control(
            lambda *chosen: _pixels(draw(*chosen), width), live_stops, start, text
        ),
    )


def compare(
    before: Figure | np.ndarray,
    after: Figure | np.ndarray,
    labels: tuple[str, str],
    alt: str,
    width: int = COLUMN,
) -> None:
    """Show two pictures of the same size, one over the other, with a movable divider.

    Args:
        before: the figure or image to the left of the divider, as from `draw` in
            `explore`.
        after: the figure or image to the right.
        labels: what each picture is, in a word or two.
        alt: a text that says what both pictures show.
        width: as for `explore`.
    """
    _check_positive(is_whole, width=width)
    pictures, shown = _drawn([before, after], width)
    page = slider.divider(pictures, labels, alt, shown)
    _show_html(page, f"{alt} ({labels[0]} | {labels[1]})")


def _show_html(page: str, summary: str, live: Callable[[], Any] | None = None) -> None:
    """Display HTML, and in a notebook that has a kernel the live control instead."""
    if _notebook() is None:
        print(summary)  # a plain script has nowhere to show it
        return
    from IPython.display import display

    bundle: dict[str, Any] = {"text/plain": summary, "text/html": page}
    if live and hasattr(_notebook(), "kernel"):
        with contextlib.suppress(ImportError):  # no ipywidgets: the HTML has to do
            # By hand: the controls of ipywidgets 7, which Colab has, make no bundle.
            version = {"version_major": 2, "version_minor": 0}
            view = version | {"model_id": live().model_id}
            bundle["application/vnd.jupyter.widget-view+json"] = view
    display(bundle, raw=True)


def _notebook() -> Any:
    """Return the IPython shell that runs this code, None outside of one."""
    ipython = sys.modules.get("IPython")  # a shell has imported it already
    return ipython and ipython.get_ipython()


def _bundle(figure: Figure) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a figure as a notebook stores it: its data and metadata by MIME type."""
    if not any(axes.images or axes.collections for axes in figure.axes):
        drawing = io.BytesIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None})
        if len(drawing.getvalue()) < LARGEST_SVG:
            plt.close(figure)
            return {"image/svg+xml": drawing.getvalue().decode()}, {}
    width = round(figure.get_figwidth() * STYLE["figure.dpi"])
    picture = _pixels(figure, width)
    kind, stored = slider.smallest(picture)
    return {f"image/{kind}": stored}, {f"image/{kind}": {"width": width}}


def _drawn(
    drawn: list[Figure | np.ndarray], width: int
) -> tuple[list[np.ndarray], int]:
    """Return figures or images as pixels, and the CSS pixels across to show them at."""
    pictures = [_pixels(one, width) for one in drawn]
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"Expected pictures of one size, got {sorted(sizes)}.")
    if isinstance(drawn[0], Figure):
        return pictures, width
    across = pictures[0].shape[1]
    return pictures, across * max(1, width // across)


def _pixels(drawn: Figure | np.ndarray, width: int) -> np.ndarray:
    """Return a figure or an image as (height, width, 3) uint8 and close the figure.

    A figure gets `SHARPNESS` times `width` pixels; an image keeps its own, which a
    browser enlarges.
    """
    if isinstance(drawn, Figure):
        plt.close(drawn)
        drawn.set_dpi(SHARPNESS * width / drawn.get_figwidth())
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3].copy()
    image = check_picture(drawn)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.round(image * 255.0).astype(np.uint8)


def _check_positive(check: Callable = is_real, **numbers: Any) -> None:
    what = "an integer" if check is is_whole else "a finite number"
    for name, number in numbers.items():
        if not check(number) or not 0 < number < np.inf:
            raise ValueError(f"Expected {name} as {what} above 0, got {number!r}.")
