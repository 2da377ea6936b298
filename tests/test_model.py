"""The network against one written from functional calls, and its arithmetic."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from unet_lib import networks
from unet_lib.model import (
    UNet,
    check_batch_norm,
    initialize,
    input_size,
    move_to,
    output_size,
    unwrapped,
    valid_sizes,
)
from unet_lib.networks import load_network, save_network

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def small(**options):
    """A tiny network with every parameter random, the biases and statistics too."""
    torch.manual_seed(0)
    network = UNet(**{"base_channels": 2, "depth": 2} | options).double().eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            layer.num_batches_tracked.fill_(70_001)
    return network


def reference(parameters, images, depth, padding, batch_norm=None):
    """U-Net from functional calls alone; an odd size at a pooling is an error.

    `batch_norm` is None, "recorded" with the recorded statistics, or "batch" with
    those of the batch, as in training.
    """

    def convolution(features, name, norm):
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        features = F.conv2d(features, weight, bias, padding=int(padding == "same"))
        if batch_norm:
            kinds = ("running_mean", "running_var", "weight", "bias")
            mean, variance, scale, shift = (parameters[f"{norm}.{k}"] for k in kinds)
            if batch_norm == "batch":
                mean = variance = None
            features = F.batch_norm(
                features, mean, variance, scale, shift, training=batch_norm == "batch"
            )
        return F.relu(features)

    def twice(features, name):
        places = (0, 1, 3, 4) if batch_norm else (0, None, 2, None)
        first, norm, second, other = (f"{name}.{place}" for place in places)
        return convolution(convolution(features, first, norm), second, other)

    skips = []
    features = twice(images, "contracting.0")
    for level in range(1, depth + 1):
        skips.append(features)
        if features.shape[2] % 2 or features.shape[3] % 2:
            raise RuntimeError("an odd size at a pooling")
        features = twice(F.max_pool2d(features, 2), f"contracting.{level}")
    for level, skip in enumerate(reversed(skips)):
        name = f"up_convolutions.{level}"
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        features = F.conv_transpose2d(features, weight, bias, stride=2)
        pads = []
        for axis in (3, 2):  # F.pad takes the last axis first
            border, odd = divmod(features.shape[axis] - skip.shape[axis], 2)
            assert not odd
            pads += [border, border]
        features = twice(
            torch.cat([F.pad(skip, pads), features], 1), f"expanding.{level}"
        )
    return F.conv2d(
        features, parameters["classify.weight"], parameters["classify.bias"]
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("depth", "channels", "classes"), [(1, 1, 2), (2, 3, 4), (3, 1, 2), (4, 2, 1)]
)
def test_forward_equals_functional_calls(depth, channels, classes, padding):
    network = small(
        depth=depth, in_channels=channels, num_classes=classes, padding=padding
    )
    height = network.input_size(5)
    images = torch.randn(2, channels, height, height + 2**depth, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(network.state_dict(), images, depth, padding)
        assert torch.equal(network(images), expected)
        single = network.float()(images.float())
    scale = expected.abs().max()
    torch.testing.assert_close(
        single / scale, (expected / scale).float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("depth", [1, 3])
def test_batch_normalization_stands_before_each_relu(depth, padding):
    network = small(depth=depth, padding=padding, batch_norm=True, dropout=0.0)
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == 2 * (2 * depth + 1)
    size = network.input_size(5)
    images = torch.randn(2, 1, size, size, dtype=torch.float64)
    parameters = {name: t.clone() for name, t in network.state_dict().items()}
    with torch.no_grad():
        expected = reference(parameters, images, depth, padding, "recorded")
        torch.testing.assert_close(network(images), expected, rtol=1e-10, atol=1e-12)
        unchanged = network.state_dict()
        assert all(torch.equal(parameters[name], unchanged[name]) for name in unchanged)
        expected = reference(parameters, images, depth, padding, "batch")
        found = network.train()(images)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert layers[0].num_batches_tracked == 70_002
    assert not torch.equal(
        layers[0].running_mean, parameters["contracting.0.1.running_mean"]
    )


@pytest.fixture(scope="module")
def paper():
    """The default network, without memory."""
    with torch.device("meta"):
        return UNet()


def test_default_is_the_papers(paper):
    assert sum(parameter.numel() for parameter in paper.parameters()) == 31_030_658
    layers = [layer for layer in paper.modules() if isinstance(layer, CONVOLUTIONS)]
    assert len(layers) == 23
    kinds = [(type(layer).__name__, layer.kernel_size) for layer in layers]
    assert kinds.count(("Conv2d", (3, 3))) == 18
    assert kinds.count(("ConvTranspose2d", (2, 2))) == 4
    assert kinds.count(("Conv2d", (1, 1))) == 1
    assert all(layer.bias is not None for layer in layers)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in paper.modules())
    assert not list(paper.buffers())
    assert paper(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)
    assert paper.output_size(572) == 388
    assert paper.input_size(388) == 572


def test_shapes_are_those_of_figure_1(paper):
    shapes = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, output: shapes.append(tuple(output.shape[1:3]))
        )
        for layer in paper.modules()
        if isinstance(layer, CONVOLUTIONS)
    ]
    paper(torch.empty(1, 1, 572, 572, device="meta"))
    for hook in hooks:
        hook.remove()
    assert shapes == [
        *[(64, 570), (64, 568), (128, 282), (128, 280), (256, 138), (256, 136)],
        *[(512, 66), (512, 64), (1024, 30), (1024, 28)],
        *[(512, 56), (512, 54), (512, 52), (256, 104), (256, 102), (256, 100)],
        *[(128, 200), (128, 198), (128, 196), (64, 392), (64, 390), (64, 388)],
        (2, 388),
    ]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_sizes_are_those_that_run(depth, padding):
    network = small(base_channels=1, depth=depth, padding=padding)
    parameters = network.state_dict()
    other = network.input_size(1)
    outputs = {}
    with torch.no_grad():
        for size in range(1, 130):
            images = torch.zeros(1, 1, size, other, dtype=torch.float64)
            try:
                output = reference(parameters, images, depth, padding)
            except RuntimeError:  # too small for a convolution, or an odd pooling
                with pytest.raises(ValueError, match="legal size"):
                    network(images)
                with pytest.raises(ValueError, match="legal size"):
                    network(images.transpose(2, 3))
            else:
                outputs[size] = output.shape[2]
                assert network(images).shape == output.shape
    legal = sorted(outputs)
    assert len(legal) > 3
    assert network.valid_sizes(1, 129) == legal
    assert network.valid_sizes(legal[1], legal[3]) == legal[1:4]
    assert network.valid_sizes(legal[1] + 1, legal[2] - 1) == []
    for size, output in outputs.items():
        assert network.output_size(size) == output
    for wanted in range(1, max(outputs.values()) + 1):
        smallest = next(size for size in legal if outputs[size] >= wanted)
        assert network.input_size(wanted) == smallest
    for size in set(range(1, legal[-1])) - set(legal):
        with pytest.raises(ValueError, match=f"input of {size} pixels") as error:
            network.output_size(size)
        named = re.search(r"size\(s\) ([\d, ]+)\.", str(error.value))[1]
        assert [int(number) for number in named.split(", ")] == [
            *[n for n in legal if n < size][-1:],
            *[n for n in legal if n > size][:1],
        ]


DEEP = [UNet(base_channels=1, depth=depth) for depth in (4, 5, 6)]


@given(network=st.sampled_from(DEEP), size=st.integers(1, 5000))
@settings(max_examples=40)
def test_sizes_of_deep_networks(network, size):
    legal = network.input_size(size)
    assert network.output_size(legal) >= size
    below = network.valid_sizes(1, legal - 1)
    assert not below or network.output_size(below[-1]) < size


def test_initial_weights():
    torch.manual_seed(0)
    layers = [layer for layer in UNet().modules() if isinstance(layer, CONVOLUTIONS)]
    down = [9, *[9 * 64] * 2, *[9 * 128] * 2, *[9 * 256] * 2, *[9 * 512] * 2, 9 * 1024]
    # One tap of the 2x2 up-convolution reaches an output pixel: N is the
    # channels, not four times as many. The modules list them before the rest.
    up = [1024, 512, 256, 128]
    expanding = [9 * n for w in (512, 256, 128, 64) for n in (2 * w, w)]
    incoming = [*down, *up, *expanding, 64]
    assert len(layers) == len(incoming) == 23
    for layer, nodes in zip(layers, incoming, strict=True):
        values = [layer.weight.detach().clone()]
        # The small layers have too few weights to tell 2 %: draw them anew.
        while sum(map(torch.Tensor.numel, values)) < 40_000:
            initialize(layer)
            values.append(layer.weight.detach().clone())
        values = torch.cat([v.flatten() for v in values]).double()
        assert values.std() == pytest.approx(math.sqrt(2 / nodes), rel=0.02)
        assert abs(values.mean()) < 0.02 * math.sqrt(2 / nodes)
        assert values.abs().max() > 3.5 * values.std()  # Gaussian, not uniform
        assert not layer.bias.any()


def test_activations_neither_die_nor_explode():
    torch.manual_seed(1)
    network = UNet(base_channels=16).eval()
    sizes = []
    for layer in network.modules():
        if isinstance(layer, CONVOLUTIONS):
            layer.register_forward_hook(
                lambda layer, inputs, output: sizes.append(float(output.std()))
            )
    with torch.no_grad():
        network(torch.randn(1, 1, 188, 188))
    assert len(sizes) == 23
    # With half the standard deviation they would fall to 2**-23.
    assert min(sizes) > 0.2
    assert max(sizes) < 10


def receptive_field(first, last, depth, level=0):
    """Input pixels, first and last, that output pixels `first` to `last` see."""
    last += 4  # two convolutions
    if level == depth:
        return first, last
    # The pooled way: up-convolution, the levels below, the pooling.
    low, high = receptive_field(first // 2, last // 2, depth, level + 1)
    # The skip is cropped by half of what the levels below take away.
    crop = _lost(depth - level) // 2
    return min(2 * low, first + crop), max(2 * high + 1, last + crop) + 4


def _lost(levels):
    """Pixels lost between a skip and what it is joined with."""
    return 8 if levels == 1 else 2 * (4 + _lost(levels - 1) + 4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_receptive_field_by_gradients(depth):
    network = small(base_channels=1, depth=depth)
    # All positive, and averages for maxima: no gradient is cut off.
    network.pool = nn.AvgPool2d(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.1)
    size = network.input_size(3 * 2**depth)
    for pixel in range(2**depth + 1):
        images = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
        network(images)[0, 1, pixel, pixel].backward()
        for axis in (0, 1):
            seen = images.grad[0, 0].abs().sum(axis).nonzero().flatten()
            expected = receptive_field(pixel, pixel, depth)
            assert (int(seen[0]), int(seen[-1])) == expected
            assert len(seen) == expected[1] - expected[0] + 1


def test_valid_network_is_the_same_everywhere():
    """Shifted by 2**depth, the input gives the shifted output; padded it does not."""
    for padding, same in (("valid", True), ("same", False)):
        network = small(padding=padding)
        size = network.input_size(20)
        whole = torch.randn(1, 1, size + 4, size + 4, dtype=torch.float64)
        with torch.no_grad():
            first, second = network(whole[..., :-4, :-4]), network(whole[..., 4:, 4:])
        equal = torch.allclose(first[..., 4:, 4:], second[..., :-4, :-4], atol=1e-12)
        assert equal is same


def test_dropout_follows_the_last_two_levels():
    network = UNet(base_channels=2, depth=3, dropout=0.5).train()
    channels = []
    network.dropout.register_forward_hook(
        lambda layer, inputs, output: channels.append(output.shape[1])
    )
    images = torch.randn(1, 1, network.input_size(8), network.input_size(8))
    first, second = network(images), network(images)
    assert channels == [8, 16] * 2
    assert not torch.equal(first, second)
    network.eval()
    assert torch.equal(network(images), network(images))
    without = UNet(base_channels=2, depth=3, dropout=0.0)
    without.load_state_dict(network.state_dict())
    torch.testing.assert_close(without.train()(images), network(images))


def test_numbers_of_numpy_are_numbers(tmp_path):
    network = UNet(base_channels=np.int64(1), depth=np.int64(1), dropout=np.float32(0))
    save_network(network, tmp_path / "network.safetensors")
    again = load_network(tmp_path / "network.safetensors")
    assert again.arguments == UNet(base_channels=1, depth=1, dropout=0.0).arguments


def test_size_arithmetic_needs_no_network():
    """Its defaults are the paper's, and a network's own numbers are the same."""
    assert (output_size(572), input_size(388)) == (388, 572)
    assert valid_sizes(560, 610) == [572, 588, 604]
    padded = UNet(base_channels=1, depth=3, padding="same")
    assert output_size(40, 3, "same") == padded.output_size(40) == 40
    assert input_size(33, 3, "same") == padded.input_size(33) == 40
    assert valid_sizes(1, 30, 3, "same") == padded.valid_sizes(1, 30) == [8, 16, 24]


# Other tools read a network by a trace of it, which knows no sizes.


@pytest.mark.filterwarnings("ignore")  # of torch.jit, which is deprecated
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_traced_network_is_the_network(padding):
    network = small(padding=padding)
    sizes = [network.input_size(n) for n in (5, 9, 21)]
    first, other = (
        torch.randn(n, 1, height, width, dtype=torch.float64)
        for n, height, width in [(1, sizes[0], sizes[1]), (2, sizes[2], sizes[0])]
    )
    with torch.no_grad():
        traced = torch.jit.trace(network, first)
        for images in (first, other):
            assert torch.equal(traced(images), network(images))


@pytest.mark.parametrize("depth", [1, 2])
def test_an_exported_network_takes_other_sizes(depth):
    network, step = small(depth=depth), 2**depth
    least = network.input_size(8)
    rows, columns = (step * torch.export.Dim(n, min=4, max=90) for n in "hw")
    sizes = {"images": {0: torch.export.Dim("batch", max=9), 2: rows, 3: columns}}
    images = torch.randn(2, 1, least, least + step, dtype=torch.float64)
    if least % step:  # the exporter knows sizes as multiples alone
        sizes = {"images": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    exported = torch.export.export(network, (images,), dynamic_shapes=sizes).module()
    other = torch.randn(1, 1, least + 2 * step, least, dtype=torch.float64)
    with torch.no_grad():
        for one in (images, other):
            torch.testing.assert_close(exported(one), network(one))


# Batch normalization over a single pixel.


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_single_pixel_is_refused_where_pytorch_would_fail(depth, padding, batch):
    network = UNet(1, 2, 1, depth, padding, batch_norm=True).train()
    check, network._check = network._check, lambda images: None
    for height in network.valid_sizes(1, network.input_size(1) + 2**depth):
        width = network.input_size(1)
        images = torch.randn(batch, 1, height, width)
        try:
            network(images)
        except ValueError:  # PyTorch's own: more than 1 value per channel expected
            with pytest.raises(ValueError, match=r"tile of .* or a batch of 2"):
                check_batch_norm(batch, (height, width), depth, padding)
            with pytest.raises(ValueError, match="lowest level"):
                check(images)
            network.eval()
            check(images)  # prediction takes the recorded statistics
            network.train()
        else:
            check_batch_norm(batch, (height, width), depth, padding)
            check(images)


# Wrappers.


def wrappers():
    network = small().float()
    yield network, network
    yield network, nn.DataParallel(network)
    yield network, torch.compile(network)
    yield network, nn.DataParallel(torch.compile(network))
    averaged = torch.optim.swa_utils.AveragedModel(network)
    yield averaged.module, averaged


def test_a_wrapped_network_is_saved(tmp_path):
    path = tmp_path / "network.safetensors"
    for network, wrapped in wrappers():
        assert unwrapped(wrapped) is network
        save_network(wrapped, path)
        loaded = load_network(path).state_dict()
        for name, tensor in network.state_dict().items():
            assert torch.equal(loaded[name], tensor)
    with pytest.raises(ValueError, match="got DataParallel"):
        save_network(nn.DataParallel(nn.ReLU()), path)


def test_weights_lie_channels_last_but_on_mps():
    class Network:
        def to(self, device, memory_format):
            return device, memory_format

    for device in ("cpu", "cuda:1", torch.device("cuda")):
        assert move_to(Network(), device) == (device, torch.channels_last)
    for device in ("mps", torch.device("mps", 0)):
        assert move_to(Network(), device) == (device, torch.contiguous_format)


ODD = {
    "in_channels": 2,
    "num_classes": 3,
    "base_channels": 2,
    "depth": 1,
    "padding": "same",
    "dropout": 0.25,
}


@pytest.mark.parametrize("options", [{"base_channels": 2, "depth": 2}, ODD])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_and_loaded(tmp_path, options, dtype):
    path = tmp_path / "new" / "network.safetensors"
    network = UNet(**options).to(memory_format=torch.channels_last)
    save_network(network, path, dtype)
    loaded = load_network(str(path))
    assert loaded.arguments == network.arguments
    assert loaded.dropout.p == network.dropout.p
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        expected = tensor if dtype is None else tensor.to(dtype).float()
        assert torch.equal(loaded.state_dict()[name], expected)
        assert loaded.state_dict()[name].dtype == torch.float32
    with safe_open(path, "np") as file:  # a plain safetensors file
        stored = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert stored == {np.dtype(np.float32 if dtype is None else np.float16)}
    assert [p.name for p in path.parent.iterdir()] == ["network.safetensors"]
    # It lies in memory as in training: the last bits of sums depend on that.
    for parameter in loaded.parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
    # Saving does not change the network itself.
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_statistics_are_saved_and_loaded(tmp_path, dtype):
    """In half precision the floats; a count of 70,001 batches would overflow it."""
    path = tmp_path / "network.safetensors"
    network = small(batch_norm=True).float()
    save_network(network, path, dtype)
    loaded = load_network(path)
    assert loaded.arguments["batch_norm"] is True
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        stored = {name: file.get_tensor(name).dtype for name in network.state_dict()}
    for name, tensor in network.state_dict().items():
        found = loaded.state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert stored[name] == torch.int64
            assert torch.equal(found, torch.tensor(70_001))
        else:
            assert stored[name] == (dtype or torch.float32)
            assert found.dtype == torch.float32
            assert torch.equal(found, tensor.to(stored[name]).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_a_type_that_cannot_hold_the_weights_is_refused(tmp_path, dtype):
    """Stored, they would be infinite, or silently the largest number of the type."""
    path = tmp_path / "network.safetensors"
    network = UNet(base_channels=1, depth=1, batch_norm=True)
    network.contracting[0][1].running_var.fill_(1e5)
    with pytest.raises(ValueError, match=r"100000.* take torch\.bfloat16"):
        save_network(network, path, dtype)
    assert not path.exists()
    save_network(network, path, torch.bfloat16)


def test_a_file_from_before_batch_normalization_is_loaded(tmp_path):
    path = tmp_path / "network.safetensors"
    network = UNet(base_channels=1, depth=1)
    arguments = {k: v for k, v in network.arguments.items() if k != "batch_norm"}
    save_file(network.state_dict(), path, {"unet": json.dumps(arguments)})
    assert load_network(path).arguments == network.arguments


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "network.safetensors"
    with pytest.raises(FileNotFoundError, match=r"network\.safetensors"):
        load_network(path)
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path)
    network = UNet(base_channels=1, depth=1)
    save_network(network, path)
    whole = path.read_bytes()
    for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="does not hold a network"):
            load_network(path)
    path.write_bytes(whole[:20] + b"\xff" + whole[21:])
    with pytest.raises(ValueError, match="does not hold a network"):
        load_network(path)
    tensors = {name: t.clone() for name, t in network.state_dict().items()}
    arguments = network.arguments
    for contents, metadata in [
        ({"weight": torch.zeros(3)}, None),
        (tensors, None),
        (tensors, {"unet": "no JSON"}),
        (tensors, {"unet": json.dumps(arguments | {"depth": 2})}),
        (tensors, {"unet": json.dumps(arguments | {"width": 2})}),
        (tensors | {"more": torch.zeros(1)}, {"unet": json.dumps(arguments)}),
    ]:
        save_file(contents, path, metadata)
        with pytest.raises(ValueError, match="does not hold a network"):
            load_network(path)


class _Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    path, sprung = tmp_path / "network.safetensors", tmp_path / "sprung"
    # The same by hand: the function, its two arguments, the call.
    by_hand = f"cbuiltins\nopen\n(V{sprung}\nVw\ntR.".encode()
    for write in (
        lambda: path.write_bytes(by_hand),
        lambda: torch.save(_Trap(sprung), path),
    ):
        write()
        with pytest.raises(ValueError, match="does not hold a network"):
            load_network(path)
        assert not sprung.exists()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "network.safetensors"
    save_network(UNet(base_channels=1, depth=1), path)
    before = path.read_bytes()

    def fails(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(networks, "save_file", fails)
    with pytest.raises(OSError, match="full"):
        save_network(UNet(base_channels=2, depth=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
