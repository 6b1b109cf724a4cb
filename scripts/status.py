"""Show how the cells of an experiment stand: python scripts/status.py [EXPERIMENT] (all without a name)."""

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("experiment", nargs="?", help="name of the experiment; all of them if left out")
    parser.add_outputs()
    options = parser.parse_args(arguments)
    from lab.sweeps.status import experiment_status, overview

    named = options.experiment
    print(experiment_status(options.outputs, named) if named else overview(options.outputs))


if __name__ == "__main__":
    run_command(main)
