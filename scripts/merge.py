"""Write a finished run's adapter and its base as one model: python scripts/merge.py outputs/<experiment>/<run> FOLDER.

What `adapter.merge=true` would have written at the run's end. The run stays as it is.
"""

from pathlib import Path

from sgdpo.console import Parser, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run with an adapter")
    parser.add_argument("folder", type=Path, help="where the model goes; must not exist")
    parser.add_trust()
    options = parser.parse_args(arguments)
    set_up_process()
    from lab.push import merge_adapter

    merge_adapter(options.run, options.folder, options.trust_remote_code)
    print(options.folder)


if __name__ == "__main__":
    run_command(main)
