"""Show a pair by its id, or by its id's first digits: its texts as they are trained, its tokens, its row.

python scripts/pair.py 2621479101317797913 data=ultrafeedback       of the data set that these settings read
python scripts/pair.py 26214252 --run outputs/demo/dpo-...          of a run's data, with its rewards

With --run: extra=[FILE] where the run's method or data is in a file of yours, model.trust_remote_code=true where its
model brings code that you trust.
"""

from dataclasses import replace
from pathlib import Path

from sgdpo.console import Parser, fail, run_command, set_up_process

# What is said of code on the command itself: a run's folder may come from anywhere.
OURS = ("extra=", "model.trust_remote_code=")


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("id", help="the pair's id, as messages and pairs.json name it, or how it begins")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings, as train.py takes them")
    parser.add_argument("--run", type=Path, help="folder of a finished run whose data and weights to take")
    options = parser.parse_intermixed_args(arguments)
    if not options.id.isdecimal():
        parser.error(f"an id is a number, not {options.id!r}")
    if options.run and not all(word.startswith(OURS) for word in options.words):
        parser.error("give --run or settings, not both: a run has its own")
    set_up_process()
    from lab.evaluation.evaluate import read_config
    from sgdpo.config.compose import compose_run, to_run_config
    from sgdpo.runs.contents import why_not_trusted
    from sgdpo.runs.validate import config_errors

    composed = compose_run(options.words)
    if errors := config_errors(composed):
        fail(errors)
    config = to_run_config(composed)
    if options.run:
        given, config = config, replace(read_config(options.run), extra=config.extra)
        if wrong := why_not_trusted(config.model, given.model.trust_remote_code):
            fail([f"{options.run} {wrong}".replace("trust_", "model.trust_")])
    from lab.pair import show_pair

    print(show_pair(options.id, config, options.run))


if __name__ == "__main__":
    run_command(main)
