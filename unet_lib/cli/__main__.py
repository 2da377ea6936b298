"""``python -m unet_lib.cli``, which `torchrun` needs."""

import sys

from unet_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
