"""Make a table of the paper from the records: `python scripts/tables.py table3`."""

import argparse
from pathlib import Path

from lab.report.build import TABLES, Request, build


def main() -> None:
    """Read the command line, write outputs/<name>/<name>.{md,tex,csv} and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are")
    parser.add_argument("--experiment", help="whose runs (default: the table's own)")
    parser.add_argument("--into", type=Path, help="folder for the files (default: OUTPUTS/<name>)")
    parser.add_argument("--metric", help="table1: what selects, e.g. eval/rewards/accuracies")
    parser.add_argument("--evaluation", help="table3, mtbench: <benchmark>-<judge>")
    try:
        print(build(Request(**vars(parser.parse_args())))[1])
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
