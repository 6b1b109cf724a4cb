"""Measure the fast path against TRL's DPOTrainer: `python scripts/bench_peers.py --help`."""

import sys

import _src  # noqa: F401
from sgdpo.bench.peers import main

if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
