"""Gather the tables and figures into outputs/published, which is tracked: `python scripts/publish.py`.

Copies what stands, writes RESULTS.md, and puts the tables into the README and into the published pages.
"""

from pathlib import Path

from sgdpo.console import Parser, run_command


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--scale", default="tiny", help="tiny, smollm2 or paper")
    parser.add_argument("--mixed", action="store_true", help="publish results of several commits, and say so")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="whose blocks take the tables")
    parser.add_outputs()
    options = parser.parse_args(arguments)
    from lab.asked import load_scales
    from lab.report.exhibit import PUBLISHED, publish, refresh

    if options.scale not in load_scales():
        parser.error(f"--scale {options.scale}: it is one of {', '.join(load_scales())}")
    if not options.readme.is_file():
        parser.error(f"--readme {options.readme}: there is no such file")
    suffix = "" if options.scale == "tiny" else f"-{options.scale}"
    print("\n".join(map(str, publish(options.outputs, suffix, mixed=options.mixed))))
    published = options.outputs / PUBLISHED
    for page in (options.readme, published / "PILOTS.md"):
        if page.is_file():
            refresh(page, published)


if __name__ == "__main__":
    run_command(main)
