"""Gather the tables and figures into outputs/published, which is tracked: `python scripts/publish.py`."""

import argparse
from pathlib import Path

from lab.report.exhibit import PUBLISHED
from lab.report.publish import publish, refresh


def main() -> None:
    """Read the command line, copy what stands, write RESULTS.md, and put the tables into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where tables and figures are")
    parser.add_argument("--scale", default="tiny", help="tiny, smollm2 or paper")
    parser.add_argument("--mixed", action="store_true", help="publish results of several commits, and say so")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="whose blocks take the tables")
    args = parser.parse_args()
    suffix = "" if args.scale == "tiny" else f"-{args.scale}"
    try:
        print("\n".join(map(str, publish(args.outputs, suffix, mixed=args.mixed))))
        refresh(args.readme, args.outputs / PUBLISHED)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
