"""Write the local report, one page that needs no server: `python scripts/report.py`."""

import argparse
from pathlib import Path

from lab.report.page import write_page


def main() -> None:
    """Read the command line, write OUTPUTS/report/index.html and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are")
    try:
        print(f"report: {write_page(parser.parse_args().outputs)}")
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
