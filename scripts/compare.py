"""Compare evaluated runs pair by pair: python scripts/compare.py RUN RUN ... [--evaluation verifiable-checker]"""

import argparse
from pathlib import Path

from rich.console import Console

from lab.evaluation.comparison import compare_runs, show
from sgdpo.console import fail

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, outputs/<experiment>/<run>")
    parser.add_argument("--evaluation", help="which evaluation; default: the only one that all runs share")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    options = parser.parse_args()
    try:
        table, sentences = show(compare_runs(options.runs, options.evaluation, seed=options.seed))
    except ValueError as error:
        fail([str(error)])
    Console(width=160).print(table)
    print("\n".join(sentences))
