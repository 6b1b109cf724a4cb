"""Draw a figure from the records: `python scripts/figures.py figure3`."""

import argparse
from pathlib import Path

from lab.report.build import FIGURES, Request, build


def main() -> None:
    """Read the command line, write outputs/<name>/<name>.{png,svg} and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=FIGURES)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are")
    parser.add_argument("--experiment", help="whose runs (default: the figure's own)")
    parser.add_argument("--into", type=Path, help="folder for the files (default: OUTPUTS/<name>)")
    parser.add_argument("--metric", help="ratio_grid, learning_rate: e.g. eval/rewards/margins")
    try:
        print(build(Request(**vars(parser.parse_args())))[1])
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
