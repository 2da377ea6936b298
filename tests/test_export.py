"""What is exported equals `predict`, in the programs that other people run it with."""

import json
import shutil
import sys
import tomllib
import zipfile
from functools import partial

import numpy as np
import pytest
import record
import torch

from unet_lib import cli
from unet_lib.export import export_bioimage, export_onnx
from unet_lib.export._graph import whole_image
from unet_lib.model import UNet
from unet_lib.networks import save_network
from unet_lib.predict import predict

onnx = pytest.importorskip("onnx", reason='needs the extra "export"')
pytest.importorskip("onnxscript", reason='needs the extra "export"')
runtime = pytest.importorskip("onnxruntime", reason='needs the extra "export"')
core = pytest.importorskip("bioimageio.core", reason='needs the extra "export"')

# Of programs that say of themselves that they are deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SIZES = [(512, 512), (301, 477), (200, 129), (1, 1), (2, 3), (1, 40)]
WHITE = 255


def random_network(**options):
    """A network whose biases and statistics count, and whose output varies."""
    torch.manual_seed(3)
    network = UNet(base_channels=1, **options)
    for name, tensor in network.state_dict().items():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor, 0, 0.3)
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(tensor, 0.5, 2)
    return network


def image_of(shape):
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def package(network, tmp_path_factory):
    """A package of the paper's depth, and the folder with what it holds."""
    path = tmp_path_factory.mktemp("export") / "package.zip"
    export_bioimage(
        network,
        path,
        image_of((300, 270)),
        authors=["A. Author"],
        cite=[("Cardona et al. 2010", "10.1371/journal.pbio.1000502")],
        pixel_size=4,
        white=WHITE,
    )
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.parent)
    return path


# The graph, before anything is exported.


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_graph_equals_predict(depth, padding):
    network = random_network(depth=depth, padding=padding).double()
    whole = whole_image(network).double()
    for shape in [(height, width) for height in (1, 2, 7, 20) for width in (1, 5, 16)]:
        image = image_of(shape).astype(np.float64)
        with torch.no_grad():
            found = whole(torch.from_numpy(image)[None, None])[0, 0]
        np.testing.assert_allclose(found, predict(network, image), rtol=0, atol=1e-7)


# ONNX.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_equals_predict(network, package, size, batch):
    if batch > 1 and size[0] > 200:
        size = (40, 50)
    session = runtime.InferenceSession(package.with_name("weights.onnx"))
    images = image_of((batch, *size))
    (found,) = session.run(None, {"images": images[:, None]})
    close(found[:, 0], predict(network, images))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Several channels and classes, padded, with batch normalization."""
    options = {"depth": 1, "padding": "same", "batch_norm": True}
    network = random_network(in_channels=2, num_classes=3, **options)
    network.train()
    path = tmp_path_factory.mktemp("others") / "network.onnx"
    export_onnx(torch.nn.DataParallel(network), path)
    assert network.training
    return network, path


def test_onnx_of_channels_and_classes_equals_predict(others):
    network, path = others
    images = image_of((2, 2, 21, 34))
    (found,) = runtime.InferenceSession(path).run(None, {"images": images})
    assert found.shape == (2, 3, 21, 34)
    close(found, predict(network, images))


def test_an_onnx_file_says_what_it_is(others):
    network, path = others
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (property,) = [one for one in model.metadata_props if one.key == "unet"]
    assert UNet(**json.loads(property.value)).arguments == network.arguments
    shapes = [
        [side.dim_param or side.dim_value for side in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", n, "height", "width"] for n in (2, 3)]


def test_eager_use_still_refuses(network, package):
    """After an export too: the check of sizes is skipped for symbols alone."""
    with pytest.raises(ValueError, match="cannot take an input of 301 pixels"):
        network(torch.zeros(1, 1, 301, 301))


# The package.


@pytest.mark.parametrize("size", SIZES[1:])
def test_torchscript_equals_predict(network, package, size):
    traced = torch.jit.load(package.with_name("weights.pt"))
    image = image_of(size)
    with torch.no_grad():
        found = traced(torch.from_numpy(image)[None, None])[0, 0]
    close(found, predict(network, image))


@pytest.mark.parametrize("weights", ["torchscript", "onnx"])
def test_the_zoo_accepts_a_package(package, weights):
    summary = core.test_model(package, weight_format=weights)
    assert summary.status == "passed", summary.display()


def test_a_package_says_what_it_is(network, package):
    model = core.load_model_description(package)
    arguments = model.config.model_dump(mode="json")["unet"]
    assert UNet(**arguments).arguments == network.arguments
    assert [one.doi for one in model.cite] == [
        "10.1007/978-3-319-24574-4_28",
        "10.1371/journal.pbio.1000502",
    ]
    assert (model.authors[0].name, model.license) == ("A. Author", "MIT")
    (images,), (probabilities,) = model.inputs, model.outputs
    assert images.pad.mode == "reflect"
    assert images.data.range == (0, WHITE)
    for axis in images.axes[2:]:
        assert (axis.size.min, axis.size.step) == (208, 16)
        assert (axis.unit, axis.scale) == ("nanometer", 4)
    assert [axis.halo for axis in probabilities.axes[2:]] == [96, 96]
    given = np.load(package.with_name("test-input.npy"))[0, 0]
    np.testing.assert_allclose(given, WHITE * image_of((300, 270))[22:278, 7:263])
    readme = package.with_name("README.md").read_text("utf-8")
    for words in (
        "Validation",
        "symmetric",
        "208",
        "steps of 16",
        "within 96 pixels",
        "4 nm",
    ):
        assert words in readme
    assert not set("{}") & set(readme)


def in_blocks(package, image, **changes):
    """What the zoo's own program predicts, in blocks with their halo."""
    model = core.load_model_description(package)
    for name, value in changes.items():
        setattr(model.inputs[0], name, value)
    tensor = WHITE * image[None, None]
    sample = core.predict(model=model, inputs={"images": tensor}, blocksize_parameter=6)
    return sample.members["probabilities"].data.to_numpy()[0, 0]


def test_blocks_of_the_zoo_join_exactly(tmp_path):
    network, path = random_network(depth=2), tmp_path / "package.zip"
    export_bioimage(network, path)
    image = image_of((92, 88))
    expected = predict(network, image)
    close(in_blocks(path, image), expected)
    # The trap that the README names: the edge pixel repeated. It reaches as far as the
    # network sees, and no farther.
    repeated = in_blocks(path, image, pad=None)
    assert abs(repeated - expected).max() > 1e-3
    inside = (slice(20, -20),) * 2
    close(repeated[inside], expected[inside])


def test_a_package_without_an_image_says_so(others, monkeypatch, tmp_path):
    network, file = others
    copied = partial(shutil.copy, file)  # exported once is enough
    monkeypatch.setattr("unet_lib.export.write_onnx", lambda _, path: copied(path))
    path = tmp_path / "package.zip"
    export_bioimage(network, path, white=1)
    with zipfile.ZipFile(path) as archive:
        readme = archive.read("README.md").decode()
    assert "drawn, not recorded" in readme
    assert "2 channel(s)" in readme
    assert "3 classes" in readme
    model = core.load_model_description(path)
    assert model.outputs[0].axes[1].size == 3
    # What is scaled already is not divided by 1, which the zoo refuses.
    assert [one.id for one in model.inputs[0].preprocessing] == ["ensure_dtype"]


# What opens where.


def test_a_program_that_was_tried_is_tested_here():
    with (record.BOOK / "programs.toml").open("rb") as file:
        programs = tomllib.load(file)["programs"]
    tried = {one["program"] for one in programs if one["tried"]}
    assert tried == {"ONNX Runtime", "bioimageio.core (Python)"}
    fields = {"program", "takes", "since", "how", "tried", "source"}
    assert all(set(one) == fields for one in programs)


# Refusals that need a file.


@pytest.mark.parametrize(
    ("export", "name"), [(export_onnx, "a.onnx"), (export_bioimage, "a.zip")]
)
def test_an_existing_file_stays(export, name, tmp_path):
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export(random_network(depth=1), path)
    assert path.read_text() == "mine"


def test_a_failed_export_leaves_nothing(monkeypatch, tmp_path):
    def fails(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("unet_lib.export.write_onnx", fails)
    with pytest.raises(OSError, match="disk is full"):
        export_onnx(random_network(depth=1), tmp_path / "a.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "bioimageio.spec.model"])
def test_a_missing_package_names_the_extra(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "unet-lib\[export\]"'):
        export_bioimage(random_network(depth=1), tmp_path / "a.zip")
    assert not any(tmp_path.iterdir())


# The command.


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_network(random_network(depth=1), "network.safetensors")
    return "network.safetensors"


def test_the_command_passes_its_options_on(file, monkeypatch, capsys):
    calls = []
    for name in ("export_onnx", "export_bioimage"):
        monkeypatch.setattr(
            f"unet_lib.export.{name}",
            lambda *arguments, **options: calls.append((arguments[1:], options)),
        )
    assert cli.main(["export", file, "a.onnx"]) == 0
    command = ["export", file, "a.zip", "--author", "A. B.", "--author", "C. D."]
    command += ["--cite", "Cardona et al.", "10.1371/journal.pbio.1000502"]
    assert cli.main([*command, "--pixel-size", "4", "--name", "My net"]) == 0
    assert "bioimageio test a.zip" in capsys.readouterr().out
    assert str(calls[0][0][0]) == "a.onnx"
    options = calls[1][1]
    assert options["authors"] == ("A. B.", "C. D.")
    assert options["cite"] == (("Cardona et al.", "10.1371/journal.pbio.1000502"),)
    assert (options["pixel_size"], options["name"]) == (4, "My net")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.tif"], "must end in .onnx or .zip"),
        (["a.onnx", "--pixel-size", "4"], "describe a package"),
        (["a.zip", "--name", "net"], "5 to 128 letters"),
        (["a.zip", "--license", "free"], "SPDX identifier"),
    ],
)
def test_the_command_refuses(file, arguments, message, capsys):
    assert cli.main(["export", file, *arguments]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
