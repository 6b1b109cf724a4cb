"""Show what came out of an experiment: python scripts/results.py EXPERIMENT [--metric eval/rewards/margins].

What was swept against the held-out metrics and the benchmarks' scores, seeds folded into mean and standard error,
best first. Writes results.md, results.csv, results.tex and results.json beside the records.
"""

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("experiment", help="name of the experiment")
    parser.add_argument("--metric", help="what to sort by, as scripts/best.py takes it")
    parser.add_outputs()
    options = parser.parse_args(arguments)
    from lab.sweeps.results import experiment_results

    table = experiment_results(options.outputs, options.experiment, options.metric).table()
    print(table.console())
    print("\n".join(map(str, table.write(options.outputs / options.experiment))))


if __name__ == "__main__":
    run_command(main)
