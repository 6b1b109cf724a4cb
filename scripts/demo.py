"""Run the demonstration: python scripts/demo.py [seed=1 ...]; what is finished is not done again."""

from sgdpo.console import Parser, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run: seed=1")
    overrides = parser.parse_args(arguments).overrides
    set_up_process()
    from lab.demo import demonstrate  # imports torch, whose threads are set up above

    print(demonstrate(overrides))


if __name__ == "__main__":
    run_command(main)
