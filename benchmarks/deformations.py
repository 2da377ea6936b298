"""Deformed tiles, against other software that deforms one array."""

import numpy as np
import torch
from skimage.transform import warp
from timing import compare

from unet_lib.augment import Augmentation, TileSampler, displacement_field, resample
from unet_lib.data import Stacks
from unet_lib.weights import weight_map


def deformations(
    stacks: Stacks, device: str, size: int = 572, repeats: int = 15
) -> list[dict]:
    """Image, labels and weights, deformed and turned, against one array deformed."""
    batch, labels = 8, stacks.train_labels[:8]
    threads = torch.get_num_threads()
    sampler = TileSampler(
        stacks.train_images[:8],
        labels,
        weight_map(labels),
        size,
        size,
        Augmentation(contrast=0, brightness=0),
        device=device,
    )
    random = np.random.default_rng(0)
    grid = random.normal(0, 10, (2, 3, 3))
    image = np.pad(stacks.train_images[0], 30, mode="reflect")
    rows = []

    def ours():
        sampler.batch(range(batch))

    others = {}
    try:
        import elasticdeform

        others["elasticdeform on the CPU, one array, order 1"] = lambda: (
            elasticdeform.deform_grid(image, grid, order=1, mode="mirror")
        )
    except ImportError:
        print("elasticdeform is not installed (it has no wheels here): left out")
    field = displacement_field(torch.from_numpy(grid)[None].float(), image.shape)
    places = np.indices(image.shape) + field[0].numpy()
    others["scikit-image on the CPU, one array, field given"] = lambda: warp(
        image, places, order=1, mode="reflect"
    )
    ours_once = resample(
        torch.from_numpy(image)[None, None], torch.from_numpy(places)[None].float()
    )[0, 0].numpy()
    for name, call in others.items():
        difference = np.abs(call() - ours_once)[30:-30, 30:-30].max()
        assert difference < 1e-3, (name, difference)
        row = compare(ours, lambda call=call: [call() for _ in range(batch)], repeats)
        where = f"{threads} threads" if device == "cpu" else device
        what = f"{batch} tiles {size}×{size}, 3 maps, turned too, {where}"
        rows.append(row | {"what": what, "other": f"{name}, {batch} times"})
    return rows
