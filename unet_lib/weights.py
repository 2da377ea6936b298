"""The weight map of the loss (section 3, equation 2).

Built in chapter 3, *Weight maps*.
"""

import numpy as np
from scipy import ndimage

MEMBRANE = 0


def label_cells(labels: np.ndarray) -> np.ndarray:
    """Number the cells of one slice: its 4-connected components from 1 on.

    Args:
        labels: ``(height, width)``; boolean or integer, 0 = membrane. A map
            with more than one value above 0 is taken as numbered already; 0
            and 1 are binary, and so are 0 and 255.

    Returns:
        int32 ``(height, width)``, 0 = membrane.
    """
    labels = _checked(labels)
    highest = labels.max()
    if labels.min(where=labels > 0, initial=highest) != highest:
        return labels.astype(np.int32)
    return ndimage.label(labels)[0]


def class_balance(labels: np.ndarray) -> tuple[float, float]:
    """The weights w_c of membrane and of cell that balance the classes.

    Each class gets the same total weight, and the mean weight is 1: a class
    with a share f of the pixels weighs 1/(2f). The paper says that w_c
    balances the classes, not how; this is our reading. A class without pixels
    weighs 1, and so does then the other.

    Args:
        labels: any shape; 0 = membrane, above 0 = cell.
    """
    labels = np.asarray(labels)
    if labels.size == 0:
        raise ValueError(f"Expected at least one pixel, got shape {labels.shape}.")
    _check_values(labels)
    cell = float(np.mean(labels > 0))
    if cell in (0.0, 1.0):
        return 1.0, 1.0
    return 0.5 / (1 - cell), 0.5 / cell


def weight_map(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), per pixel.

    d1 and d2 are the distances to the nearest and the second nearest cell. The
    second term stands on membrane pixels only: it is there to make the network
    learn the border between two cells, and inside a cell it would only add to
    the cell's weight. w_c is `class_balance` over all that is given, so give a
    whole stack to weigh its slices alike.

    Args:
        labels: ``(height, width)`` or ``(slices, height, width)``; binary
            (1 = cell, 0 = membrane) or with a number for each cell.
        w0: height of the second term. Paper: 10.
        sigma: its width in pixels. Paper: about 5.

    Returns:
        float32 of the shape of `labels`, above 0.

    Raises:
        ValueError: for labels of another rank or type, or below 0, and for a
            negative w0 or a sigma that is not positive.
    """
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or labels.size == 0:
        raise ValueError(
            "Expected labels of shape (height, width) or (slices, height, width) "
            f"with at least one pixel, got {labels.shape}."
        )
    if not (w0 >= 0 and np.isfinite(w0)) or not (sigma > 0 and np.isfinite(sigma)):
        raise ValueError(f"Expected w0 >= 0 and sigma > 0, got {w0} and {sigma}.")
    membrane, cell = class_balance(labels)
    weights = np.where(labels > 0, cell, membrane).astype(np.float32)
    # Farther out the term is below 1e-7 of w0: not worth a search.
    reach = sigma * np.sqrt(2 * np.log(1e7))
    stack = labels if labels.ndim == 3 else labels[None]
    for labels_slice, weights_slice in zip(
        stack, weights.reshape(stack.shape), strict=True
    ):
        nearest, second = border_distances(labels_slice, reach)
        term = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
        weights_slice += np.where(labels_slice > 0, 0, term).astype(np.float32)
    return weights


def border_distances(
    labels: np.ndarray, reach: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Distances d1, d2 to the nearest and the second nearest cell.

    Measured in pixels from a membrane pixel's centre to the closest pixel
    centre of the cell. Exact, and one search for all cells together: first
    each pixel learns the two nearest different cells up and down its own
    column, then it looks at the columns to its left and right, the nearest
    first, and stops when no farther column can better what it has.

    Args:
        labels: ``(height, width)`` as for `weight_map`.
        reach: distances above it need not be exact and may be infinite.

    Returns:
        Two float64 ``(height, width)``. Inside cells both are 0. Infinite
        where there are fewer than one, or two, cells.
    """
    cells = label_cells(labels)
    height, width = cells.shape
    membrane = cells == MEMBRANE
    numbers = cells[~membrane]
    if numbers.size == 0 or numbers.min() == numbers.max():
        # Fewer than two cells: the search for a second would not end early.
        infinite = np.where(membrane, np.inf, 0)
        one = ndimage.distance_transform_edt(membrane) if numbers.size else infinite
        return one, infinite
    candidates = _nearest_in_columns(cells)

    rows, columns = np.nonzero(membrane)
    first_cell = np.zeros(rows.size, np.int32)
    first, second = np.full((2, rows.size), np.inf)  # squared distances so far
    active = np.arange(rows.size)
    flat = rows * width + columns
    for step in range(int(min(reach, width - 1)) + 1):
        active = active[second[active] > step**2]
        if active.size == 0:
            break
        for column_step in (-step, step) if step else (0,):
            column = columns[active] + column_step
            inside = active[(column >= 0) & (column < width)]
            place = flat[inside] + column_step
            for cell_map, squared_map in candidates:
                squared = squared_map[place] + step**2
                better = np.flatnonzero(squared < second[inside])
                pixels, squared = inside[better], squared[better]
                cell = cell_map[place[better]]
                # The winner of the first place sends its holder, if that is
                # another cell, to the second; the rest compete for the second.
                was = first[pixels]
                other = cell != first_cell[pixels]
                second[pixels[other]] = np.maximum(was, squared)[other]
                wins = squared < was
                first[pixels[wins]] = squared[wins]
                first_cell[pixels[wins]] = cell[wins]
    nearest, second_nearest = np.zeros((2, height, width))
    nearest[rows, columns] = np.sqrt(first)
    second_nearest[rows, columns] = np.sqrt(second)
    return nearest, second_nearest


def _nearest_in_columns(cells: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two nearest different cells above and below each pixel, in its column.

    Returns four pairs (number of the cell, squared distance), each
    ``(height, width)``; where there is no such cell the distance is infinite.
    """
    candidates = []
    row = np.arange(len(cells), dtype=np.int32)[:, None]
    for direction in (slice(None), slice(None, None, -1)):
        here = cells[direction]
        last = np.maximum.accumulate(np.where(here > 0, row, -1), axis=0)
        last_cell = np.take_along_axis(here, np.maximum(last, 0), axis=0)
        # Where the cell changes, the one before becomes the second nearest.
        second = np.full_like(last, -1)
        changes = (last_cell[1:] != last_cell[:-1]) & (last[:-1] >= 0)
        second[1:][changes] = last[:-1][changes]
        second = np.maximum.accumulate(second, axis=0)
        second_cell = np.take_along_axis(here, np.maximum(second, 0), axis=0)
        for cell, place in ((last_cell, last), (second_cell, second)):
            squared = np.where(place >= 0, np.float64(row - place) ** 2, np.inf)
            # Contiguous, since take() would copy a reversed view at each call.
            pair = (cell[direction], squared[direction])
            candidates.append(tuple(map(np.ravel, pair)))
    return candidates


def _checked(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(
            "Expected labels of one slice, (height, width), with at least one pixel, "
            f"got {labels.shape}."
        )
    _check_values(labels)
    return labels


def _check_values(labels: np.ndarray) -> None:
    if labels.dtype != bool and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected boolean or integer labels, got {labels.dtype}: 1 (or a number "
            "for each cell) is cell, 0 membrane."
        )
    if labels.min() < 0:
        raise ValueError("Expected labels from 0 on, got values below 0.")
    if labels.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"Expected labels up to {np.iinfo(np.int32).max}, got {labels.max()}: "
            "renumber the cells (skimage.segmentation.relabel_sequential)."
        )
