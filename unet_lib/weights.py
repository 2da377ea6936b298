"""The weight map of the loss (section 3, equation 2).

Built in :doc:`weight-maps`.
"""

from typing import Any

import numpy as np
from scipy import ndimage

from unet_lib._checks import (
    UNKNOWN,
    as_stack,
    check_labels,
    check_slices,
    is_real,
    is_whole,
)

__all__ = ["border_distances", "class_balance", "label_cells", "part", "weight_map"]

MEMBRANE = 0


def label_cells(labels: np.ndarray) -> np.ndarray:
    """Number the cells of one slice: its 4-connected components from 1 on.

    Args:
        labels: ``(height, width)``, boolean or integer, 0 = membrane. A map with only
            0 and 1, or 0 and 255, is binary. A map with more than one value above 0 is
            taken to have numbered cells already.

    Returns:
        int32 ``(height, width)``, 0 = membrane.

    Raises:
        ValueError: if the shape or the type is another one, or if values are below 0
            or look like gray values.
    """
    return _numbered(_checked_slice(labels))


def part(labels: np.ndarray, gap: int = 1) -> np.ndarray:
    """Part cells that touch by a thin gap of background.

    A pixel of a cell becomes background if another cell lies within `gap` pixels of it,
    diagonally too, that is, in the square with sides of 2 gap + 1 pixels around it. So
    each of two touching cells loses a line of `gap` pixels, and cells that are farther
    apart than `gap` stay as they are. A cell with no pixel farther than `gap` from
    other cells is lost. The paper puts such a gap between touching cells of the same
    class, but does not give its width (section 3); without a gap, the border term of
    `weight_map` has no pixels to act on. Used in :doc:`touching-cells`.

    Args:
        labels: ``(height, width)`` or ``(slices, height, width)``, integer: a number
            for each cell, 0 = background, -1 = unknown.
        gap: pixels that each of two touching cells loses; 0 leaves them as they are.

    Returns:
        A new array with the shape and type of `labels`.

    Raises:
        ValueError: if labels have another shape or type, are below -1 or look like
            gray values, or if the gap is not an integer of at least 0.

    Example:
        >>> part(np.array([[3, 3, 3, 3, 8, 8, 8]]))
        array([[3, 3, 3, 0, 0, 8, 8]])
    """
    labels = check_slices(labels, "labels")
    for one in labels if labels.ndim == 3 else [labels]:
        _checked_slice(one, unknown=True)
    if not is_whole(gap) or gap < 0:
        raise ValueError(f"Expected a gap as an integer from 0 on, got {gap!r}.")
    cells = np.where(labels > 0, labels, 0).astype(np.int32)
    window = (1,) * (labels.ndim - 2) + (2 * gap + 1,) * 2
    highest = ndimage.maximum_filter(cells, window)
    cells[cells == MEMBRANE] = np.iinfo(np.int32).max  # so as not to be the lowest
    lowest = ndimage.minimum_filter(cells, window)
    parted = labels.copy()
    parted[(labels > 0) & (highest != lowest)] = MEMBRANE
    return parted


def class_balance(labels: np.ndarray, num_classes: int = 2) -> tuple[float, ...]:
    r"""The weights :math:`w_c` that balance the classes, of membrane, then of cell.

    Each class gets the same total weight, and the mean weight is 1: with :math:`N`
    classes, a class that has a fraction :math:`f` of the pixels gets the weight
    :math:`1 / (N f)`. The paper says that :math:`w_c` balances the classes, but not
    how; this is our reading. A class without pixels gets the weight 1 and does not
    count in :math:`N`.

    Args:
        labels: any shape; 0 = membrane and above 0 = cell, or, with more than two
            classes, the number of the class; -1 = unknown, which is left out.
        num_classes: the number of classes.
    """
    labels = np.asarray(labels)
    if labels.size == 0:
        raise ValueError(f"Expected at least one pixel, got shape {labels.shape}.")
    check_labels(labels, unknown=True)
    return _balance([labels], _checked_classes([labels], num_classes))


def weight_map(
    labels: np.ndarray | list[np.ndarray],
    w0: float = 10.0,
    sigma: float = 5.0,
    num_classes: int = 2,
) -> Any:
    r"""The weight of each pixel in the loss: class balance and a border term.

    .. math:: w(x) = w_c(x) + w_0 \exp(-(d_1(x) + d_2(x))^2 / (2 \sigma^2))

    :math:`d_1` and :math:`d_2` are the distances to the nearest and the second nearest
    cell. The second term is added on membrane pixels only: its purpose is to make the
    network learn the border between two cells, and inside a cell it would only add to
    the cell's weight. :math:`w_c` is the `class_balance` of all the labels, so pass a
    whole stack to weight its slices alike. An unknown pixel has the weight 0.

    Args:
        labels: ``(height, width)`` or ``(slices, height, width)``, or a list of
            ``(height, width)``, which may differ in size; binary (1 = cell, 0 =
            membrane) or with a number for each cell; -1 = unknown.
        w0: height of the second term. Paper: 10.
        sigma: its width in pixels. Paper: about 5.
        num_classes: if it is above 2, labels are the numbers of classes, 0 =
            background; cells are then the 4-connected components of all pixels above
            0, whatever their classes.

    Returns:
        float32 with the shape of `labels`, 0 where they are -1 and above 0 elsewhere;
        a list if `labels` is a list.

    Raises:
        ValueError: if labels have another shape or type, are below -1, look like gray
            values, or are not below `num_classes` although that is above 2; if w0 is
            negative; or if sigma is not positive.

    Example:
        Two cells with one pixel of membrane between them:

        >>> labels = np.array([[1, 1, 1, 0, 1, 1, 1]])
        >>> weight_map(labels).round(1)
        array([[ 0.6,  0.6,  0.6, 12.7,  0.6,  0.6,  0.6]], dtype=float32)
    """
    given = as_stack(labels)
    if isinstance(given, list):
        slices = given
    else:
        given = check_slices(given, "labels")
        slices = [*given] if given.ndim == 3 else [given]
    slices = [_checked_slice(one, unknown=True) for one in slices]
    numbers = is_real(w0) and is_real(sigma)
    if not numbers or not (0 <= w0 < np.inf and 0 < sigma < np.inf):
        raise ValueError(f"Expected w0 >= 0 and sigma > 0, got {w0!r} and {sigma!r}.")
    balance = _balance(slices, _checked_classes(slices, num_classes))
    weights = [_weigh(one, balance, w0, sigma) for one in slices]
    if isinstance(given, list):
        return weights
    return np.stack(weights).reshape(given.shape)


def _weigh(
    labels: np.ndarray, balance: tuple[float, ...], w0: float, sigma: float
) -> np.ndarray:
    """`weight_map` of one slice, by the balance of all."""
    classes = np.clip(labels, 0, len(balance) - 1)
    weights = np.array(balance)[classes.astype(np.intp)].astype(np.float32)
    # Farther out the term is below 1e-7 of w0: not worth a search.
    reach = sigma * np.sqrt(2 * np.log(1e7))
    # Class numbers are not numbers of cells.
    cells = np.where(labels > 0, labels, 0) if len(balance) == 2 else labels > 0
    nearest, second = _distances(_numbered(cells), reach)
    term = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    weights += np.where(labels > 0, 0, term).astype(np.float32)
    weights[labels == UNKNOWN] = 0
    return weights


def border_distances(
    labels: np.ndarray, reach: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """The distances d1 and d2 to the nearest and the second nearest cell.

    They are measured in pixels, from the center of a membrane pixel to the center of
    the closest pixel of the cell. They are exact, and one search finds them for all
    cells: first the two nearest different cells in each pixel's own row, then the rows
    above and below, nearest first, until no farther row can be closer.

    Args:
        labels: ``(height, width)``, as for `weight_map`.
        reach: distances above this need not be exact and may be infinite.

    Returns:
        Two float64 arrays ``(height, width)``. Inside cells both are 0. The first is
        infinite in a slice without cells, the second in one with fewer than two.
    """
    if not is_real(reach) or not reach >= 0:
        raise ValueError(f"Expected a reach from 0 on, got {reach!r}.")
    return _distances(_numbered(_checked_slice(labels)), reach)


def _numbered(labels: np.ndarray) -> np.ndarray:
    """`label_cells` of a checked slice."""
    highest = labels.max()
    if labels.min(where=labels > 0, initial=highest) != highest:
        return labels.astype(np.int32)
    return ndimage.label(labels)[0]


def _balance(slices: list[np.ndarray], num_classes: int) -> tuple[float, ...]:
    """`class_balance` of checked labels."""
    counts = np.zeros(num_classes)
    for labels in slices:
        classes = np.clip(labels[labels != UNKNOWN], 0, num_classes - 1)
        counts += np.bincount(classes.astype(np.intp), minlength=num_classes)
    present = counts > 0
    fractions = counts / max(counts.sum(), 1)
    fractions[0] = 1 - fractions[1:].sum()  # rounded as it was in all recorded runs
    weights = np.ones(num_classes)
    weights[present] = 1 / (present.sum() * fractions[present])
    return tuple(weights.tolist())


def _checked_classes(slices: list[np.ndarray], num_classes: int) -> int:
    if not is_whole(num_classes) or num_classes < 2:
        raise ValueError(f"Expected num_classes of at least 2, got {num_classes!r}.")
    highest = max(int(one.max()) for one in slices)
    if highest >= num_classes > 2:
        raise ValueError(
            f"Expected labels of {num_classes} classes, 0 to {num_classes - 1}, got "
            f"labels up to {highest}: pass num_classes={highest + 1}."
        )
    return num_classes


def _distances(cells: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """`border_distances` of a slice whose cells are numbered."""
    height, width = cells.shape
    membrane = cells == MEMBRANE
    numbers = cells[~membrane]
    if numbers.size == 0 or numbers.min() == numbers.max():
        # Fewer than two cells: the search for a second would not end early.
        infinite = np.where(membrane, np.inf, 0)
        one = ndimage.distance_transform_edt(membrane) if numbers.size else infinite
        return one, infinite
    in_row = [candidates.ravel() for candidates in _nearest_in_row(cells)]

    pixels = np.flatnonzero(membrane)
    first, second = (candidates[pixels] for candidates in in_row)
    active = np.arange(pixels.size)
    for step in range(1, int(min(reach, height - 1)) + 1):
        farther = step**2 << CELL_BITS
        active = active[second[active] > farther]
        if active.size == 0:
            break
        for offset in (-step * width, step * width):
            place = pixels[active] + offset
            inside = (place >= 0) & (place < cells.size)
            here, place = active[inside], place[inside]
            for candidates in in_row:
                first[here], second[here] = _two_nearest(
                    first[here], second[here], candidates[place] + farther
                )
    distances = np.zeros((2, height, width))
    distances.reshape(2, -1)[:, pixels] = [_distance(first), _distance(second)]
    return distances[0], distances[1]


# While the search goes on, a cell at a distance is one int64, the squared distance
# in the high bits and the cell's number in the low: the least is the nearest cell.
CELL_BITS = 31
CELL = (1 << CELL_BITS) - 1
NO_CELL = 1 << 62


def _two_nearest(
    first: np.ndarray, second: np.ndarray, candidate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest and the second nearest, with one more candidate."""
    loser = np.maximum(first, candidate)
    first = np.minimum(first, candidate)
    loser[(first ^ loser) & CELL == 0] = NO_CELL  # the same cell, farther away
    return first, np.minimum(second, loser)


def _distance(candidate: np.ndarray) -> np.ndarray:
    return np.where(candidate < NO_CELL, np.sqrt(candidate >> CELL_BITS), np.inf)


def _nearest_in_row(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two nearest different cells of each pixel's own row.

    No third cell of a row can be among the two nearest of any pixel.
    """
    first, second = _nearest_to_the_left(cells)
    for candidate in _nearest_to_the_left(cells[:, ::-1]):
        first, second = _two_nearest(first, second, candidate[:, ::-1])
    return first, second


def _nearest_to_the_left(cells: np.ndarray) -> list[np.ndarray]:
    """The two nearest different cells at or left of each pixel."""
    column = np.arange(cells.shape[1])
    # Column and cell as one integer; the largest so far is the last that was met.
    last = np.where(cells > 0, column << CELL_BITS | cells, -1)
    last = np.maximum.accumulate(last, axis=1)
    # Where the cell changes, the one before becomes the second nearest.
    second = np.full_like(last, -1)
    before, after = last[:, :-1], last[:, 1:]
    changes = (before ^ after) & CELL != 0
    second[:, 1:][changes] = before[changes]
    second = np.maximum.accumulate(second, axis=1)
    return [
        np.where(
            met >= 0,
            (column - (met >> CELL_BITS)) ** 2 << CELL_BITS | met & CELL,
            NO_CELL,
        )
        for met in (last, second)
    ]


def _checked_slice(labels: np.ndarray, unknown: bool = False) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(
            "Expected labels of one slice, (height, width), with at least one pixel, "
            f"got {labels.shape}."
        )
    if max(labels.shape) >= 1 << 15:
        raise ValueError(
            f"Expected slices of at most {(1 << 15) - 1} pixels a side, got "
            f"{labels.shape}: cut the slice."
        )
    check_labels(labels, unknown=unknown)
    numbers = np.unique(labels[labels > 0]).size if labels.max() > 127 else 0
    if numbers > 1 and (lonely := _lonely(labels)) > numbers:
        raise ValueError(
            f"Expected labels of 0 and 1 or with a number for each cell, but {lonely} "
            f"single pixels with {numbers} different values from {labels.min()} to "
            f"{labels.max()} look like gray values: pass labels > {labels.max() // 2}, "
            "or skimage.measure.label(labels, connectivity=1) to give each connected "
            "piece its own number."
        )
    return labels


def _lonely(labels: np.ndarray) -> int:
    """How many cell pixels differ from all four neighbors.

    Where each cell is one connected piece, there are at most as many as cells.
    """
    lonely = labels > 0
    for axis in (0, 1):
        one, same = np.moveaxis(lonely, axis, 0), np.diff(labels, axis=axis) == 0
        same = np.moveaxis(same, axis, 0)
        one[:-1] &= ~same
        one[1:] &= ~same
    return int(np.count_nonzero(lonely))
