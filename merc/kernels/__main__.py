"""``python -m merc.kernels``: compile and load the operators now, so that no run has to compile them."""

import os
import sys

from merc.kernels.library import CHOICE, UnavailableError, load


def main() -> int:
    """Say where the operators are, or why there are none."""
    try:
        print(f"merc's operators for this processor: {load()}")
    except UnavailableError as error:
        print(f"Without operators of its own merc computes by PyTorch's, which takes longer: {error}")
    if os.environ.get(CHOICE) == "off":
        print(f"They are not used, since the environment variable {CHOICE} says so.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
