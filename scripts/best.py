"""Select the best ratios of a grid: python scripts/best.py EXPERIMENT --metric eval/rewards/margins.

The metric: eval/rewards/margins, eval/rewards/accuracies, eval/loss, or of an evaluation, for example
verifiable-checker:win_rate. Writes best.json and best.md beside the records.
"""

import argparse
import sys
from pathlib import Path

from lab.sweeps.best import best_ratios, render_best, write_best

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="name of the experiment that holds the grid")
    parser.add_argument("--metric", default="eval/rewards/margins", help="what to select by")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the records")
    given = parser.parse_args()
    try:
        findings = best_ratios(given.outputs, given.experiment, given.metric)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(render_best(findings))
    print("\n".join(map(str, write_best(findings, given.outputs / given.experiment))))
