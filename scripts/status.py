"""Show how the cells of an experiment stand: python scripts/status.py [EXPERIMENT] (all without a name)."""

import argparse
import sys
from pathlib import Path

from lab.sweeps.cells import SweepError
from lab.sweeps.status import experiment_status, overview

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", nargs="?", help="name of the experiment; all of them if left out")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the records")
    given = parser.parse_args()
    try:
        named = given.experiment
        print(experiment_status(given.outputs, named) if named else overview(given.outputs))
    except SweepError as error:
        sys.exit(str(error))
