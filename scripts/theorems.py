"""Check the paper's theorems against autograd and draw f: `python scripts/theorems.py [--run FOLDER]`."""

import argparse
from pathlib import Path

from lab.report.theorems import newest_run, report


def main() -> None:
    """Read the command line, write outputs/theorems/ and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run of method=sgdpo (default: the newest finished one)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are looked for")
    parser.add_argument("--out", type=Path, help="folder for the files (default: OUTPUTS/theorems)")
    parser.add_argument("--count", type=int, default=10_000, help="random points for each beta")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random points")
    args = parser.parse_args()
    out = args.out or args.outputs / "theorems"
    try:
        print(report(out, args.run or newest_run(args.outputs), args.count, args.seed))
    except ValueError as error:
        parser.error(str(error))
    print(f"picture: {out / 'theorems.png'}")


if __name__ == "__main__":
    main()
