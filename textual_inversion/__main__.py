"""`python -m animate124.textual_inversion`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main(prog=f"python -m {__package__}"))
