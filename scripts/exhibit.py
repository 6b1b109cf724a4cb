"""Make a table or figure from the records: `python scripts/exhibit.py table3 evaluation=verifiable-checker`."""

import argparse
from pathlib import Path


def main() -> None:
    """Read the command line, write OUTPUTS/<name>/ and show what was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a file of conf/report: table1, figure2, ...")
    parser.add_argument("settings", nargs="*", help="of its function: metric=eval/rewards/margins")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are")
    parser.add_argument("--experiment", help="whose runs (default: its own)")
    parser.add_argument("--into", type=Path, help="folder for the files (default: OUTPUTS/<name>)")
    args = parser.parse_intermixed_args()
    try:
        from lab.report.exhibit import find_exhibit, make

        print(make(find_exhibit(args.name, args.settings), args.outputs, args.experiment, args.into)[1])
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
