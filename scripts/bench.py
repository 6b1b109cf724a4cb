"""Measure speed and memory of the fast path: `python scripts/bench.py --help`."""

import sys

from lab.bench.cli import main

if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
