"""A slice predicted by overlap-tile, against other plans and MONAI."""

import numpy as np
import torch
from timing import compare

from unet_lib import UNet
from unet_lib.data import Stacks
from unet_lib.predict import plan_tiles, predict


def overlap_tiles(stacks: Stacks, device: str) -> list[dict]:
    """One slice by the cheapest plan, against tiles of 572 and against MONAI."""
    network = UNet(base_channels=64 if device == "cuda" else 16).to(device).eval()
    image = stacks.train_images[0]
    others = {"the same with tiles of 572": lambda: predict(network, image, tile=572)}
    try:
        from monai.inferers import sliding_window_inference

        others["MONAI sliding_window_inference, tiles of 572"] = lambda: monai_predict(
            sliding_window_inference, network, image, device
        )
    except ImportError:
        print("MONAI is not installed (uv run --group benchmarks): left out")
    rows = []
    for name, call in others.items():
        np.testing.assert_allclose(predict(network, image), call(), atol=1e-4)
        row = compare(lambda: predict(network, image), call, 3)
        tile = plan_tiles(network, image.shape)[0].tile
        channels = network.arguments["base_channels"]
        what = f"a 512×512 slice, {channels} channels, one tile of {tile}"
        rows.append(row | {"what": what, "other": name})
    return rows


@torch.inference_mode()
def monai_predict(inferer, network, image, device) -> np.ndarray:
    """MONAI expects a network that keeps the size; so pad, and weigh the rim away."""
    tile, output, stride = 572, 388, 384
    border = (tile - output) // 2
    reach = 2 * stride + tile - stride  # two tiles a side cover 512
    after = reach - border - len(image)
    padded = np.pad(image, (border, after), mode="reflect")
    window = torch.full((tile, tile), 1e-12, device=device)
    window[border : border + output, border : border + output] = 1

    def same_size(tiles):
        scores = network(tiles)
        return torch.nn.functional.pad(scores, (border,) * 4)

    scores = inferer(
        torch.from_numpy(padded)[None, None].to(device),
        (tile, tile),
        1,
        same_size,
        overlap=1 - stride / tile,
        roi_weight_map=window,
    )
    cell = torch.softmax(scores, dim=1)[0, 1].cpu().numpy()
    return cell[border : border + len(image), border : border + len(image)]
