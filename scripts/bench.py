"""Measure speed and memory of the fast path: `python scripts/bench.py --help`."""

from sgdpo.console import run_command


def main(arguments: list[str]) -> None:
    from lab.bench.options import parse

    options = parse(arguments)
    from lab.bench.cli import measure

    measure(options)


if __name__ == "__main__":
    run_command(main)
