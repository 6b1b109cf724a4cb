"""Compare evaluated runs pair by pair: python scripts/compare.py RUN RUN ... [--evaluation verifiable-checker]"""

from pathlib import Path

from sgdpo.console import Parser, number, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, outputs/<experiment>/<run>")
    parser.add_argument("--evaluation", help="which evaluation; default: the only one that all runs share")
    parser.add_argument(
        "--seed", type=number(int, "[0, 4294967296)"), default=0, help="seed of the bootstrap"
    )
    options = parser.parse_args(arguments)
    from lab.evaluation.comparison import compare_runs, show

    table, sentences = show(compare_runs(options.runs, options.evaluation, seed=options.seed))
    print(table.console())
    print("\n".join(sentences))


if __name__ == "__main__":
    run_command(main)
