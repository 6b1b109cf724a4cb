"""Write the local report, one page that needs no server: `python scripts/report.py`."""

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_outputs()
    options = parser.parse_args(arguments)
    from lab.report.page import write_page

    print(f"report: {write_page(options.outputs)}")


if __name__ == "__main__":
    run_command(main)
