"""The network of the paper (section 2, Figure 1) and its size arithmetic.

Built in :doc:`architecture`.
"""

import math
from numbers import Integral, Real

import torch
from torch import nn


class UNet(nn.Module):
    """U-Net; with no arguments the network of the paper's Figure 1.

    Input ``(batch, in_channels, height, width)``, float; output the class
    scores before the soft-max, ``(batch, num_classes, height', width')`` with
    ``height' = output_size(height)``. For two classes, class 1 is *cell*.

    Args:
        in_channels: channels of the image. Paper: 1.
        num_classes: channels of the output. Paper: 2.
        base_channels: channels of the first level, doubled at each further
            one. Paper: 64. A smaller number is a deviation: faster by about
            its square, and less accurate, as measured in :doc:`results`.
        depth: how often the contracting path halves the image. Paper: 4.
        padding: ``"valid"`` (paper), every convolution eats a border of one
            pixel, or ``"same"``, a deviation: the output is as large as the
            input, and pixels near the border are computed from zeros.
        dropout: the rate of drop-out at the end of the contracting path, that
            is after its last two levels, as in the authors' released network.
            The paper states no rate; 0.5 is that network's.
        batch_norm: whether a batch normalisation stands between each 3x3
            convolution and its ReLU, a deviation that most replications take.

    Raises:
        ValueError: for arguments out of range, and by ``forward`` for an
            input of the wrong shape or of a size that the network cannot take.

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
        padding: str = "valid",
        dropout: float = 0.5,
        batch_norm: bool = False,
    ):
        super().__init__()
        numbers = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "base_channels": base_channels,
            "depth": depth,
        }
        for name, value in numbers.items():
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be an integer from 1 on, not {value!r}.")
        if padding not in ("valid", "same"):
            raise ValueError(f'padding must be "valid" or "same", not {padding!r}.')
        if not isinstance(dropout, Real) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, not {dropout!r}.")
        if not isinstance(batch_norm, bool):
            raise ValueError(f"batch_norm must be True or False, not {batch_norm!r}.")
        # Plain numbers, since `save_network` writes them as JSON.
        self.arguments = {name: int(value) for name, value in numbers.items()}
        self.arguments |= {"padding": padding, "dropout": float(dropout)}
        self.arguments |= {"batch_norm": batch_norm}
        in_channels, num_classes, base_channels, depth = map(int, numbers.values())
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
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
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
                f"Expected images of floats from 0 to 1, got {images.dtype}."
            )
        # NumPy's default. Half and single precision meet under autocast.
        weight = self.classify.weight.dtype
        if images.dtype != weight and torch.float64 in (images.dtype, weight):
            raise ValueError(
                f"Expected images of {weight}, as the network's weights are, got "
                f"{images.dtype}: convert them with images.to({weight})."
            )
        self.output_size(images.shape[2])
        self.output_size(images.shape[3])

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
            skip = centre_crop(skips.pop(), features.shape[2:])
            features = convolutions(torch.cat([skip, features], dim=1))
        return self.classify(features)

    def output_size(self, size: int) -> int:
        """The output's height (or width) for an input's; ValueError if illegal."""
        _check_whole(size)
        output = self._output_size(size)
        if output is None:
            smallest = self.input_size(1)
            step = 2**self.depth
            below = size - (size - smallest) % step
            nearest = [n for n in (below, below + step) if n >= smallest]
            raise ValueError(
                f"A U-Net of depth {self.depth} with padding={self.padding!r} cannot "
                f"take an input of {size} pixels: nearest legal size(s) "
                f"{', '.join(map(str, nearest or [smallest]))}. Legal are "
                f"{smallest} + {step}k; crop, or mirror the border "
                "(unet_lib.predict does)."
            )
        return output

    def input_size(self, size: int) -> int:
        """The smallest legal input whose output is at least `size` >= 1 pixels."""
        _check_whole(size)
        if size < 1:
            raise ValueError(f"Expected an output of at least one pixel, got {size}.")
        step = 2**self.depth
        if self.padding == "same":
            return step * math.ceil(size / step)
        # From the lowest level's output upwards, then the way back down.
        bottom = 1
        while (output := self._expanded(bottom)) < size:
            bottom += max(1, (size - output) // step)
        return self._contracted(bottom)

    def valid_sizes(self, low: int, high: int) -> list[int]:
        """All legal input sizes from `low` to `high`, both included."""
        _check_whole(low)
        _check_whole(high)
        return [n for n in range(low, high + 1) if self._output_size(n) is not None]

    def _output_size(self, size: int) -> int | None:
        if self.padding == "same":
            return size if size > 0 and size % 2**self.depth == 0 else None
        bottom = size - 4
        for _ in range(self.depth):
            if bottom < 2 or bottom % 2:
                return None
            bottom = bottom // 2 - 4
        output = self._expanded(bottom)
        return output if bottom > 0 and output > 0 else None

    def _expanded(self, bottom: int) -> int:
        for _ in range(self.depth):
            bottom = 2 * bottom - 4
        return bottom

    def _contracted(self, bottom: int) -> int:
        size = bottom + 4
        for _ in range(self.depth):
            size = 2 * size + 4
        return size


def _two_convolutions(
    before: int, after: int, padding: str, batch_norm: bool
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
    if not isinstance(size, Integral):
        raise ValueError(
            f"Expected a size in whole pixels, got {size!r}: give an integer."
        )


def centre_crop(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The middle `size` pixels of ``(..., height, width)``: the skip's crop.

    ValueError where `size` is larger, or an odd number smaller: no middle then.
    """
    if features.ndim < 2 or len(size) != 2:
        raise ValueError(
            "Expected features (..., height, width) and a size (height, width), got "
            f"{tuple(features.shape)} and {tuple(size)}."
        )
    height, width = size
    down, across = features.shape[-2] - height, features.shape[-1] - width
    if min(height, width) < 1 or min(down, across) < 0 or down % 2 or across % 2:
        raise ValueError(
            "Expected a size of at least one pixel and by an even number smaller than "
            f"the features, got {height} x {width} of {features.shape[-2]} x "
            f"{features.shape[-1]}: take a legal input size (UNet.valid_sizes)."
        )
    top, left = down // 2, across // 2
    return features[..., top : top + height, left : left + width]


def incoming_nodes(layer: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """N of the paper's section 3: how many numbers enter one output neuron.

    For a convolution, the kernel's pixels times the channels. In a 2x2
    up-convolution of stride 2 no two taps overlap: each output pixel sees one
    pixel of the input, so N is the channels alone.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.in_channels
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(
            f"Expected a Conv2d or a ConvTranspose2d, got {type(layer).__name__}."
        )
    return layer.in_channels * math.prod(layer.kernel_size)


def initialise(network: nn.Module) -> None:
    """Gaussian weights of standard deviation sqrt(2/N), biases zero (section 3)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / incoming_nodes(layer)))
            nn.init.zeros_(layer.bias)
