"""Train, judge and make a table or figure of the paper: `python scripts/reproduce.py table3 --seeds 3`."""

from sgdpo.console import Parser, number, run_command


def main(arguments: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("target", help="a file of conf/report: table1, figure2, ...; or paper for all")
    parser.add_argument("--scale", default="tiny", help="tiny, smollm2 or paper")
    parser.add_argument(
        "--seeds", type=number(int, "[1, 1000]"), default=1, help="how many seeds, from 42 on"
    )
    parser.add_argument("--n-jobs", type=number(int, "[1, 1000]"), default=1, help="cells at a time")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and how long")
    parser.add_argument("--models", default="", help="other models than the scale's, with commas")
    parser.add_argument("--benchmark", default="", help="a file of conf/benchmark")
    parser.add_argument("--judge", default="", help="a file of conf/judge")
    parser.add_argument("--evaluation", default="", help="which judge's results a table shows")
    parser.add_argument("--train-rows", default="", help="a file of preference rows instead of the hub's")
    parser.add_argument("--test-rows", default="", help="a file of held-out rows")
    parser.add_argument("--outputs", default="outputs", help="where the records are")
    parser.add_argument(
        "arguments", nargs="*", help="further overrides: of the training runs, judge.budget_dollars=20"
    )
    read = vars(parser.parse_intermixed_args(arguments))
    from lab.reproduce import Options, reproduce

    models = tuple(filter(None, read.pop("models").split(",")))
    return reproduce(Options(**{**read, "models": models, "arguments": tuple(read["arguments"])}))


if __name__ == "__main__":
    run_command(main)
