"""Select the best setting of a sweep: python scripts/best.py EXPERIMENT [--metric ...] [--key optimizer.lr ...].

For every setting of what else was swept: which value of the keys is best, and whether beyond noise.
The metric: eval/rewards/margins, eval/rewards/accuracies, eval/loss, or of an evaluation, for example
verifiable-checker:win_rate. Writes best.json and best.md beside the records.
"""

import argparse
import sys
from pathlib import Path

from lab.sweeps.results import find_best, render_best, write_best

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="name of the experiment")
    parser.add_argument("--metric", default="eval/rewards/margins", help="what to select by")
    parser.add_argument(
        "--key", nargs="*", default=[], help="what to select; default: all but model and method"
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the records")
    given = parser.parse_args()
    try:
        findings = find_best(given.outputs, given.experiment, given.metric, given.key)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(render_best(findings))
    print("\n".join(map(str, write_best(findings, given.outputs / given.experiment))))
