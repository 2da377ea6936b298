"""U-Net (Ronneberger, Fischer, Brox 2015), exactly, chapter by chapter."""

from unet_lib.model import UNet, load_network, save_network

__all__ = ["UNet", "load_network", "save_network"]
