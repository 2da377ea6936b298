"""U-Net (Ronneberger, Fischer, Brox 2015), exactly, chapter by chapter."""

__all__ = ["UNet", "load_network", "save_network"]


def __getattr__(name):
    # Imported when first asked for: torch takes seconds, and a command's --help none.
    if name in __all__:
        from unet_lib import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
