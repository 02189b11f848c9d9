"""`python -m qwen25vl`: the command line."""

import sys

from qwen25vl.cli import main

if __name__ == "__main__":
    sys.exit(main())
