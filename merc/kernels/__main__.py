"""``python -m merc.kernels``: compile the operators now, so that no run has to."""

import sys

from merc.kernels.library import UnavailableError, library


def main() -> int:
    """Say where the operators are, or why there are none."""
    try:
        print(f"merc's operators for this processor: {library()}")
    except UnavailableError as error:
        print(f"Without operators of its own merc computes by PyTorch's, which takes longer: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
