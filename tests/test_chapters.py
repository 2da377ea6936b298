"""The shape of a chapter: one main line that is short, complete and fits a phone."""

import ast
import builtins
import re

import numpy as np
import pytest
import record
import torch
from torch import nn

from unet_lib import UNet, weights
from unet_lib.loss import weighted_cross_entropy
from unet_lib.model import incoming_nodes

# The chapters that have been rewritten to this shape.
CHAPTERS = ["architecture", "weight-maps"]
# Cells that a reader opens first: folded by a tag, or in a folded box or solution.
FOLDED = {"hide-cell", "hide-input", "remove-cell", "remove-input"}
FOLDS = re.compile(
    r":::\{(?:box-start\}[^\n]*\n:class: [^\n]*dropdown|solution-start\}).*?"
    r":::\{(?:box|solution)-end\}\n:::",
    re.DOTALL,
)
CELL = re.compile(
    r"^```\{code-cell\} ipython3\n(?:---\n.*?^---\n|(?::[^\n]*\n)+\n?)?.*?^```$",
    re.DOTALL | re.MULTILINE,
)


def open_page(name):
    """The text of a page without its header and what is folded in boxes."""
    text = (record.BOOK / f"{name}.md").read_text("utf-8")
    return FOLDS.sub("", text.partition("\n---\n")[2])


def open_cells(name):
    """The code that a page shows without a click."""
    text = (record.BOOK / f"{name}.md").read_text("utf-8")
    unfolded = FOLDS.sub("", text)
    return [
        cell.source
        for cell in record.code_cells(record.read_page(name))
        if not FOLDED & set(cell.metadata.get("tags", []))
        and f"{cell.source}\n```" in unfolded
    ]


def assigned_and_used(code):
    """The names that code binds anywhere, and those that it reads."""
    bound, used = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound, used


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_main_line_is_short(name):
    lines = [
        line for code in open_cells(name) for line in code.splitlines() if line.strip()
    ]
    assert 40 <= len(lines) <= 120
    assert [line for line in lines if len(line) > 60] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_main_text_takes_twenty_minutes(name):
    words = CELL.sub("", open_page(name)).split()
    assert 1_700 <= len([one for one in words if re.search(r"\w", one)]) <= 2_000


@pytest.mark.parametrize("name", CHAPTERS)
def test_open_code_uses_what_open_code_defines(name):
    known = set(dir(builtins))
    for code in open_cells(name):
        bound, used = assigned_and_used(code)
        known |= bound
        assert used <= known, f"{sorted(used - known)} in: {code[:60]}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_page_begins_with_text(name):
    title, first, *_ = (part for part in open_page(name).split("\n\n") if part.strip())
    assert title.strip().startswith("# ")
    assert re.match(r"\w", first)


def kept(name):
    """Run the cell of the box "Keep this" alone; return what it defines."""
    text = (record.BOOK / f"{name}.md").read_text("utf-8")
    (box,) = re.findall(r":class: keep\n(.*?):::\{box-end\}", text, re.DOTALL)
    (code,) = re.findall(r"```\{code-cell\} ipython3\n(.*?)^```$", box, re.S | re.M)
    defined = {}
    exec(compile(code, name, "exec"), defined)
    return defined


def test_the_network_to_keep_is_the_librarys():
    torch.manual_seed(0)
    ours = kept("architecture")["OurUNet"](channels=2, classes=3)
    theirs = UNet(base_channels=2, num_classes=3)
    theirs.load_state_dict(ours.state_dict())
    tile = torch.rand(2, 1, 188, 204)  # higher and wider tiles differ
    scores = []
    for network in (ours, theirs):
        torch.manual_seed(1)  # the same dropout
        scores.append(network(tile))
    torch.testing.assert_close(*scores)
    for layer in ours.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert not layer.bias.any()
    # Where there are weights enough to tell.
    wide = kept("architecture")["OurUNet"](channels=16)
    for layer in [*wide.up_convolutions, wide.contracting[3][2]]:
        expected = (2 / incoming_nodes(layer)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("cells", [0, 1, 5])
def test_the_map_and_the_loss_to_keep_are_the_librarys(cells):
    random = np.random.default_rng(cells)
    slices = np.zeros((2, 40, 50), np.uint8)
    for row, column in random.integers(3, 37, (cells, 2)):
        slices[0, row - 3 : row + 3, column - 3 : column + 3] = 1
    slices[1, 5:20, 5:20] = 1
    fraction = slices.mean()
    ours = [kept("weight-maps")["weight_map"](one, fraction) for one in slices]
    theirs = weights.weight_map(slices)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    scores = torch.from_numpy(random.normal(size=(2, 2, 40, 50)))
    pixels = torch.from_numpy(slices).long(), torch.from_numpy(theirs)
    torch.testing.assert_close(
        kept("weight-maps")["weighted_loss"](scores, *pixels),
        weighted_cross_entropy(scores, *pixels),
    )
