"""Put SmolLM2-135M-Instruct in place: `python scripts/smollm2.py [--cache outputs/cache]`."""

import argparse
import sys
from pathlib import Path

from transformers.utils import logging

from sgdpo.models.smollm2 import put_in_place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="the runs' cache folder")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        put_in_place(parser.parse_args().cache / "models" / "smollm2-135m-instruct")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
