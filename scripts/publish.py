"""Gather the tables and figures into outputs/published, which is tracked: `python scripts/publish.py`."""

import argparse
from pathlib import Path

import _src  # noqa: F401
from sgdpo.report.publish import publish


def main() -> None:
    """Read the command line, copy what stands and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where tables and figures are")
    parser.add_argument("--scale", default="tiny", help="tiny, smollm2 or paper")
    args = parser.parse_args()
    suffix = "" if args.scale == "tiny" else f"-{args.scale}"
    try:
        print("\n".join(map(str, publish(args.outputs, suffix=suffix))))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
