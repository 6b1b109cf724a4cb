"""Show what came out of an experiment: python scripts/results.py EXPERIMENT [--metric eval/rewards/margins].

What was swept against the held-out metrics and the benchmarks' scores, seeds folded into mean and standard error,
best first. Writes results.md, results.csv, results.tex and results.json beside the records.
"""

import argparse
import sys
from pathlib import Path

from lab.sweeps.results import experiment_results

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="name of the experiment")
    parser.add_argument("--metric", help="what to sort by, as scripts/best.py takes it")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the records")
    given = parser.parse_args()
    try:
        table = experiment_results(given.outputs, given.experiment, given.metric).table()
        written = table.write(given.outputs / given.experiment)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table.console())
    print("\n".join(map(str, written)))
