"""The published network, ready for use: a quarter of the paper's width.

Its card, pretrained.md beside this file, says what it learnt from, how well networks
trained in the same way do on slices that they have not seen, and what it is no good
for. Used in :doc:`results`.
"""

import hashlib
from pathlib import Path

import torch

from unet_lib.model import UNet, load_network

FILE = Path(__file__).with_suffix(".safetensors")
# Of the file, byte for byte; written by book/publish.py.
SHA256 = "585cee9458ebd022dd99c0abbead9a1535b650671d5a8fb2c6ffc10a92e122ab"


def load_pretrained(device: str | torch.device = "cpu") -> UNet:
    """The published network, in evaluation mode and float32.

    It takes slices as `data.load_isbi2012` gives them: one grey channel, float32, 0
    to 1, membranes dark, about 4 nm a pixel. Class 1 is *cell*.

    Args:
        device: where to put it.

    Raises:
        FileNotFoundError: if its file is missing from the installed package.
        ValueError: if the file is not the published one, byte for byte.
    """
    if not FILE.is_file():
        raise FileNotFoundError(
            f"{FILE} is missing: install unet_lib anew, or copy the file from its "
            "repository."
        )
    found = hashlib.sha256(FILE.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{FILE} is damaged or another network: expected SHA-256 {SHA256}, got "
            f"{found}. Install unet_lib anew."
        )
    return load_network(FILE, device)
