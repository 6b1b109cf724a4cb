"""Measure the fast path against TRL's DPOTrainer: `python scripts/bench_peers.py --help`."""

from sgdpo.console import run_command


def main(arguments: list[str]) -> None:
    from lab.bench.options import parse

    options = parse(arguments)
    from lab.bench.peers import measure

    measure(options)


if __name__ == "__main__":
    run_command(main)
