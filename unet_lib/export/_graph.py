"""The exported graph: a network with `predict` around it, and how it is written."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from unet_lib.model import UNet, unwrapped

IR_VERSION = 8  # of the container, the oldest that knows the operators below
OPSET = 18  # the oldest that PyTorch's exporter writes, for the oldest readers


class WholeImage(nn.Module):
    """`predict` as a network: an image of any size in, its probabilities out.

    The input is ``(batch, channels, height, width)``, float32, 0 to 1; the output
    ``(batch, maps, height, width)``: the softmax of class 1, or of all classes of more
    than two. Sizes are integers, symbols of a compiler or tensors of a tracer.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.classes = network.arguments["num_classes"]
        tile = network.input_size(1)
        self.least = network.output_size(tile)  # smallest output
        self.border = (tile - self.least) // 2
        self.step = 2**network.depth

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[2:]
        padded = images.index_select(2, self._mirrored(height, images.device))
        padded = padded.index_select(3, self._mirrored(width, images.device))
        scores = self.network(padded)[:, :, :height, :width]
        probabilities = torch.softmax(scores, dim=1)
        return probabilities[:, 1:] if self.classes == 2 else probabilities

    def _mirrored(self, length: int, device: torch.device) -> torch.Tensor:
        """Where each pixel of a padded row comes from, as in `predict.mirror_pad`."""
        # Written as a multiple of the step, which a compiler's symbols can halve.
        steps = (length - self.least + self.step - 1) // self.step
        covered = self.least + steps * self.step
        there_and_back = 2 * length - 2 + 1 // length  # 1 for a single pixel, not 0
        period = torch.full((1,), there_and_back, device=device)
        places = torch.arange(-self.border, covered + self.border, device=device)
        places = places % period
        return torch.minimum(places, period - places)


def whole_image(network: nn.Module) -> WholeImage:
    """What is exported, on the CPU; the network itself stays as it is."""
    unet = unwrapped(network)
    if unet.arguments["num_classes"] < 2:
        raise ValueError(
            f"Expected a network of at least two classes, got {unet.arguments}."
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing(error) from error
    return WholeImage(copy.deepcopy(unet).cpu().float()).eval()


def missing(error: ImportError) -> ImportError:
    return ImportError(
        f'The export needs {error.name}: run `pip install "unet-lib[export]"`.',
        name=error.name,
    )


def write_onnx(whole: WholeImage, path: Path) -> None:
    import onnx

    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            whole,
            (_example(whole),),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": any_size},
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        batch, _, height, width = value.type.tensor_type.shape.dim
        batch.dim_param, height.dim_param, width.dim_param = "batch", "height", "width"
    model.ir_version = IR_VERSION
    for node in model.graph.node:  # traces with paths of the exporting machine
        node.ClearField("metadata_props")
    arguments = {"unet": json.dumps(whole.network.arguments)}
    onnx.helper.set_model_props(model, arguments)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_torchscript(whole: WholeImage, path: Path) -> None:
    with torch.no_grad(), quiet():
        traced = torch.jit.trace(whole, _example(whole), check_trace=False)
        traced.save(str(path))


def _example(whole: WholeImage) -> torch.Tensor:
    """What the exporters trace. The graph that they write takes other sizes too."""
    channels = whole.network.arguments["in_channels"]
    return torch.zeros(2, channels, 2 * whole.step + 3, 3 * whole.step + 5)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporters log about themselves and torchvision."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
