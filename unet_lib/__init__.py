"""U-Net (Ronneberger, Fischer, Brox 2015), exactly, chapter by chapter."""

import importlib

_HOMES = {
    "UNet": "model",
    "load_network": "model",
    "load_pretrained": "pretrained",
    "save_network": "model",
}
__all__ = list(_HOMES)


def __getattr__(name):
    # Imported when first asked for: torch takes seconds, and a command's --help none.
    if name in _HOMES:
        return getattr(importlib.import_module(f"unet_lib.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
