"""How much memory this process has held at its peak."""

import sys


def peak_megabytes() -> float:
    """The largest resident set so far, in units of 2**20 bytes."""
    if sys.platform == "win32":
        import psutil  # comes with ipykernel

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
