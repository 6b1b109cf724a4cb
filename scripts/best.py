"""Select the best setting of a sweep: python scripts/best.py EXPERIMENT [--metric ...] [--key optimizer.lr ...].

For every setting of what else was swept: which value of the keys is best, and whether beyond noise.
The metric: eval/rewards/margins, eval/rewards/accuracies, eval/loss, or of an evaluation, for example
verifiable-checker:win_rate. Writes best.json and best.md beside the records.
"""

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("experiment", help="name of the experiment")
    parser.add_argument("--metric", default="eval/rewards/margins", help="what to select by")
    parser.add_argument(
        "--key", nargs="*", default=[], help="what to select; default: all but model and method"
    )
    parser.add_outputs()
    options = parser.parse_args(arguments)
    from lab.sweeps.results import find_best, render_best, write_best

    findings = find_best(options.outputs, options.experiment, options.metric, options.key)
    print(render_best(findings))
    print("\n".join(map(str, write_best(findings, options.outputs / options.experiment))))


if __name__ == "__main__":
    run_command(main)
