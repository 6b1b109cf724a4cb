"""Put SmolLM2-135M-Instruct in place: `python scripts/smollm2.py [--cache outputs/cache]`."""

from pathlib import Path

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="the runs' cache folder")
    folder = parser.parse_args(arguments).cache / "models" / "smollm2-135m-instruct"
    from transformers.utils import logging

    from sgdpo.models.smollm2 import put_in_place

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    put_in_place(folder)


if __name__ == "__main__":
    run_command(main)
