"""List the finished runs that lack an evaluation: `python scripts/lacking.py table3 verifiable-checker`."""

import argparse
from pathlib import Path

import _src  # noqa: F401
from sgdpo.report.build import lacking


def main() -> None:
    """Read the command line and print one run folder a line, those to be evaluated first on top."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("evaluation", help="<benchmark>-<judge>")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are")
    args = parser.parse_args()
    try:
        print("\n".join(str(run.folder) for run in lacking(args.outputs, args.experiment, args.evaluation)))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
