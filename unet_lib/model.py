"""The network of the paper (section 2, Figure 1) and its size arithmetic.

Built in :doc:`architecture`.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import nn

from unet_lib._checks import is_real, is_whole

__all__ = [
    "UNet",
    "incoming_nodes",
    "initialize",
    "input_size",
    "output_size",
    "valid_sizes",
]

Padding = Literal["valid", "same"]


class UNet(nn.Module):
    """The U-Net; without arguments, the network of the paper's Figure 1.

    The input is ``(batch, in_channels, height, width)``, float. The output is the
    logits, ``(batch, num_classes, height', width')`` with
    ``height' = output_size(height)``. Of two classes, class 1 is *cell*.

    Args:
        in_channels: channels of the image. Paper: 1.
        num_classes: channels of the output. Paper: 2.
        base_channels: channels of the first level; each level has twice as many
            as the one above. Paper: 64. Fewer are a deviation: half the channels
            take about a quarter of the time, and the network is less accurate, as
            measured in :doc:`results`.
        depth: how often the contracting path halves the image. Paper: 4.
        padding: ``"valid"`` (paper): each 3x3 convolution removes a border of one
            pixel. ``"same"``, a deviation: the output is as large as the input,
            and pixels near the border are computed from zeros.
        dropout: dropout rate after the last two levels of the contracting path,
            as in the authors' released network. The paper gives no rate; 0.5 is
            the rate of that network.
        batch_norm: add batch normalization between each 3x3 convolution and its
            ReLU, a deviation that most replications make.

    Raises:
        ValueError: if an argument is out of range; ``forward`` raises it if the input
            has the wrong shape or type, or a size that the network cannot take.

    Example:
        >>> network = UNet(base_channels=2)  # the sizes do not depend on it
        >>> network.output_size(572)
        388
        >>> network.input_size(512)
        700
        >>> network.valid_sizes(560, 610)
        [572, 588, 604]
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 64,
        depth: int = 4,
        padding: Padding = "valid",
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        counts: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "base_channels": base_channels,
            "depth": depth,
        }
        for name, value in counts.items():
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name} must be an integer from 1 on, not {value!r}.")
            counts[name] = int(value)
        if padding not in get_args(Padding):
            raise ValueError(f'padding must be "valid" or "same", not {padding!r}.')
        if not is_real(dropout) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, not {dropout!r}.")
        if not isinstance(batch_norm, bool):
            raise ValueError(f"batch_norm must be True or False, not {batch_norm!r}.")
        in_channels, num_classes, base_channels, depth = counts.values()
        # Plain numbers, since `save_network` writes them as JSON.
        rest = {"padding": padding, "dropout": float(dropout), "batch_norm": batch_norm}
        self.arguments = counts | rest
        self.depth = depth
        self.padding = padding

        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.contracting = nn.ModuleList(
            _two_convolutions(before, after, padding, batch_norm)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.up_convolutions = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2)
            for width in reversed(widths[:-1])
        )
        self.expanding = nn.ModuleList(
            _two_convolutions(2 * width, width, padding, batch_norm)
            for width in reversed(widths[:-1])
        )
        self.classify = nn.Conv2d(base_channels, num_classes, kernel_size=1)
        initialize(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A tracer or compiler knows no sizes yet: to it they are symbols.
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            self._check(images)
        skips = []
        features = images
        for level, convolutions in enumerate(self.contracting):
            features = convolutions(features if level == 0 else self.pool(features))
            if level >= self.depth - 1:
                features = self.dropout(features)
            skips.append(features)
        skips.pop()  # the lowest level goes up, not across
        for up_convolution, convolutions in zip(
            self.up_convolutions, self.expanding, strict=True
        ):
            features = up_convolution(features)
            skip = _center_crop(skips.pop(), features.shape[2:])
            features = convolutions(torch.cat([skip, features], dim=1))
        return self.classify(features)

    def output_size(self, size: int) -> int:
        """The output's height (or width) for the input's; ValueError if not valid."""
        return output_size(size, self.depth, self.padding)

    def input_size(self, size: int) -> int:
        """The smallest valid input whose output is at least `size` >= 1 pixels."""
        return input_size(size, self.depth, self.padding)

    def valid_sizes(self, low: int, high: int) -> list[int]:
        """All valid input sizes from `low` to `high`, both included."""
        return valid_sizes(low, high, self.depth, self.padding)

    def _check(self, images: torch.Tensor) -> None:
        in_channels = self.arguments["in_channels"]
        if not isinstance(images, torch.Tensor):
            raise ValueError(
                f"Expected images as a tensor, got {type(images).__name__}: "
                "torch.from_numpy makes one, and unet_lib.predict takes arrays."
            )
        if images.ndim != 4 or images.shape[1] != in_channels:
            raise ValueError(
                f"Expected images of shape (batch, {in_channels}, height, width), "
                f"got {tuple(images.shape)}."
            )
        if not images.is_floating_point():
            raise ValueError(
                f"Expected images of floats from 0 to 1, got {images.dtype}: "
                "unet_lib.predict says how to scale an array."
            )
        # NumPy's default. Half and single precision meet under autocast.
        weight = self.classify.weight.dtype
        if images.dtype != weight and torch.float64 in (images.dtype, weight):
            raise ValueError(
                f"Expected images of {weight}, as the network's weights are, got "
                f"{images.dtype}: convert them with images.to({weight})."
            )
        height, width = images.shape[2:]
        if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
            return
        self.output_size(height)
        self.output_size(width)
        if self.training and self.arguments["batch_norm"]:
            check_batch_norm(len(images), (height, width), self.depth, self.padding)


def output_size(size: int, depth: int = 4, padding: Padding = "valid") -> int:
    """The output's height (or width) for the input's, without building a network.

    Args:
        size: height or width of the input, in pixels.
        depth: as for `UNet`.
        padding: as for `UNet`.

    Raises:
        ValueError: if such a network cannot take this size; the message names the
            nearest sizes that it can take.

    Example:
        >>> output_size(572)
        388
    """
    _check_whole(size)
    output = _output_size(size, depth, padding)
    if output is None:
        smallest = input_size(1, depth, padding)
        step = 2**depth
        below = size - (size - smallest) % step
        nearest = [n for n in (below, below + step) if n >= smallest]
        raise ValueError(
            f"A U-Net of depth {depth} with padding={padding!r} cannot take an input "
            f"of {size} pixels: nearest legal size(s) "
            f"{', '.join(map(str, nearest or [smallest]))}. Legal are {smallest} + "
            f"{step}k; crop, or mirror the border (unet_lib.predict does)."
        )
    return output


def input_size(size: int, depth: int = 4, padding: Padding = "valid") -> int:
    """The smallest valid input whose output is at least `size` >= 1 pixels.

    Arguments and errors are as for `output_size`.
    """
    _check_whole(size)
    if size < 1:
        raise ValueError(f"Expected an output of at least one pixel, got {size}.")
    step = 2**depth
    if padding == "same":
        return step * math.ceil(size / step)
    # From the lowest level's output upwards, then the way back down.
    bottom = 1
    while (output := _expanded(bottom, depth)) < size:
        bottom += max(1, (size - output) // step)
    for _ in range(depth):
        bottom = 2 * (bottom + 4)
    return bottom + 4


def valid_sizes(
    low: int, high: int, depth: int = 4, padding: Padding = "valid"
) -> list[int]:
    """All valid input sizes from `low` to `high`, both included.

    Example:
        >>> valid_sizes(560, 610)
        [572, 588, 604]
    """
    _check_whole(low)
    _check_whole(high)
    sizes = range(low, high + 1)
    return [n for n in sizes if _output_size(n, depth, padding) is not None]


def check_batch_norm(
    batch: int, size: tuple[int, int], depth: int, padding: Padding
) -> None:
    """Refuse to train a batch normalization that would see a single pixel.

    It divides by the spread of each channel over the batch's pixels. On the lowest
    level of a padded network there can be only one; an unpadded network has more.

    Args:
        batch: the number of tiles that a process takes at a time.
        size: height and width of a tile.
        depth: as for `UNet`.
        padding: as for `UNet`.
    """
    step = 2**depth
    if padding == "same" and batch * math.prod(size) == step**2:
        raise ValueError(
            f"A tile of {size[0]} x {size[1]} pixels is a single pixel on the lowest "
            f"level, and batch normalization needs more than one: take a tile of "
            f"{2 * step} pixels, or a batch of 2 or more (for each process)."
        )


def unwrapped(network: nn.Module) -> UNet:
    """The U-Net in a DataParallel, an averaged or a compiled network, or itself."""
    inner: nn.Module | None = network
    while not isinstance(inner, UNet):
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if inner is None:
            raise ValueError(
                f"Expected a UNet, or one in a wrapper such as DataParallel, got "
                f"{type(network).__name__}."
            )
    return inner


def move_to(network: UNet, device: torch.device | str) -> UNet:
    """The network on a device, its weights in the order that is fastest there.

    That is channels last, but not on MPS: there convolutions are slower in it, and
    gradients of a batch normalization were wrong (pytorch issues 193349 and 175189).
    """
    mps = torch.device(device).type == "mps"
    order = torch.contiguous_format if mps else torch.channels_last
    return network.to(device, memory_format=order)  # type: ignore[call-overload]


def _output_size(size: int, depth: int, padding: Padding) -> int | None:
    if padding == "same":
        return size if size > 0 and size % 2**depth == 0 else None
    bottom = size - 4
    for _ in range(depth):
        if bottom < 2 or bottom % 2:
            return None
        bottom = bottom // 2 - 4
    output = _expanded(bottom, depth)
    return output if bottom > 0 and output > 0 else None


def _expanded(bottom: int, depth: int) -> int:
    """The output for a lowest level of `bottom` pixels."""
    for _ in range(depth):
        bottom = 2 * bottom - 4
    return bottom


def _two_convolutions(
    before: int, after: int, padding: Padding, batch_norm: bool
) -> nn.Sequential:
    """Two 3x3 convolutions, each with a ReLU: one level of either path."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers.append(nn.Conv2d(channels, after, kernel_size=3, padding=padding))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _check_whole(size: int) -> None:
    if not is_whole(size):
        raise ValueError(
            f"Expected a size in whole pixels, got {size!r}: give an integer."
        )


def _center_crop(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The middle `size` pixels of ``(batch, channels, height, width)``."""
    height, width = size
    top = (features.shape[2] - height) // 2
    left = (features.shape[3] - width) // 2
    return features[:, :, top : top + height, left : left + width]


def incoming_nodes(layer: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """:math:`N` of the paper's section 3: how many numbers enter one output neuron.

    For a convolution, the kernel's pixels times the channels. In a 2x2
    up-convolution of stride 2 no two taps overlap: each output pixel sees one
    pixel of the input, so :math:`N` is the channels alone.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.in_channels
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(
            f"Expected a Conv2d or a ConvTranspose2d, got {type(layer).__name__}."
        )
    return layer.in_channels * math.prod(layer.kernel_size)


def initialize(network: nn.Module) -> None:
    r"""Gaussian weights of deviation :math:`\sqrt{2/N}`, biases zero (section 3)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / incoming_nodes(layer)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
