"""Measure the fast path against TRL's DPOTrainer: `python scripts/bench_peers.py --help`."""

import sys

from lab.bench.peers import main

if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
