"""Prediction: tiles in batches, and one slice through `unet_lib.predict`."""

from copy import deepcopy

import numpy as np
import torch
from steps import compiles
from timing import medians, versus

from unet_lib import UNet
from unet_lib.data import Stacks
from unet_lib.predict import predict

TOLERANCE = 0.05  # of probabilities; a number in bfloat16 has 8 bits


def inference(
    stacks: Stacks, device: str, channels: int = 0, tile: int = 572, repeats: int = 9
) -> list[dict]:
    """Each network against the one before: channels last, bfloat16, compiled."""
    gpu = device == "cuda"
    channels, batch = channels or (64 if gpu else 16), 16 if gpu else 2
    torch.manual_seed(0)
    plain = UNet(base_channels=channels).to(device).eval()
    ordered = deepcopy(plain).to(memory_format=torch.channels_last)
    networks = {"float32, contiguous": plain, "channels last": ordered}
    networks["bfloat16"] = deepcopy(ordered).bfloat16()
    if gpu and compiles(device):
        networks["torch.compile"] = deepcopy(networks["bfloat16"])
        networks["torch.compile"].compile()
    image = stacks.train_images[0]
    expected = predict(plain, image)
    for name, network in networks.items():
        np.testing.assert_allclose(
            predict(network, image), expected, atol=TOLERANCE, err_msg=name
        )

    rng = np.random.default_rng(0)
    tiles = rng.random((batch, 1, tile, tile), np.float32)

    def tiles_through(network):
        given = torch.from_numpy(tiles).to(next(network.parameters()))

        @torch.inference_mode()
        def call():
            network(given)

        return call

    def slice_through(network):
        return lambda: predict(network, image)

    size = f"{channels} channels, {device}"
    what = {
        f"{batch} tiles of {tile}, {size}": tiles_through,
        f"a slice of {'×'.join(map(str, image.shape))}, {size}": slice_through,
    }
    rows = []
    for name, way in what.items():
        took = medians([way(network) for network in networks.values()], repeats)
        timed = list(zip(networks, took, strict=True))
        for (other, other_seconds), (change, mine) in zip(
            [*timed[:-1], timed[0]], [*timed[1:], timed[-1]], strict=True
        ):
            row = versus(mine, other_seconds) | {"what": f"{name}: {change}"}
            row |= {"other": other, "target": "on one H200 under 3 ms"}
            if way is tiles_through:
                row |= {"tiles_per_second": batch / mine, "peak_gib": None}
                row["target"] = "on one H200 at least 1,200 tiles/s"
            if not gpu:
                del row["target"]
            rows.append(row)
    return rows
