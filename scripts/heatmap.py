"""Draw the ratio grid as a heat map: python scripts/heatmap.py EXPERIMENT --metric eval/rewards/margins."""

import argparse
import sys
from pathlib import Path

from lab.sweeps.results import draw_experiment, send_pictures

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", help="name of the experiment that holds the grid")
    parser.add_argument("--metric", default="eval/rewards/margins", help="as scripts/best.py takes it")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the records")
    parser.add_argument("--no-wandb", action="store_true", help="write the files, tell W&B nothing")
    given = parser.parse_args()
    try:
        pictures = draw_experiment(given.outputs, given.experiment, given.metric)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print("\n".join(map(str, pictures)))
    if not given.no_wandb:
        print(f"W&B: {send_pictures(pictures, given.experiment, given.metric)}")
