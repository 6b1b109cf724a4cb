"""Make a table or figure from the records: `python scripts/exhibit.py table3 evaluation=verifiable-checker`."""

from pathlib import Path

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("name", help="a file of conf/report: table1, figure2, ...")
    parser.add_argument("settings", nargs="*", help="of its function: metric=eval/rewards/margins")
    parser.add_argument("--experiment", help="whose runs (default: its own)")
    parser.add_argument("--into", type=Path, help="folder for the files (default: OUTPUTS/<name>)")
    parser.add_argument("--made-by", default="", help="the command that published results name for it")
    parser.add_outputs()
    options = parser.parse_intermixed_args(arguments)
    from lab.report.exhibit import find_exhibit, make

    exhibit = find_exhibit(options.name, options.settings)
    print(make(exhibit, options.outputs, options.experiment, options.into, options.made_by)[1])


if __name__ == "__main__":
    run_command(main)
