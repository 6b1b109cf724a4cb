"""Score published files of judgments, without any run: AlpacaEval's annotations.json, FastChat's judgments.

python scripts/score.py annotations.json
python scripts/score.py annotations.json benchmark=alpaca_eval benchmark.gamed=null benchmark.difficulties=null
python scripts/score.py gpt-4_single.jsonl --model vicuna-13b-v1.3
"""

from pathlib import Path

from sgdpo.console import Parser, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="+", metavar="FILE or key=value", help="files and overrides")
    parser.add_argument("--model", help="whose judgments, if a file holds several models")
    options = parser.parse_intermixed_args(arguments)
    set_up_process()
    from lab.evaluation.command import score_files, show
    from lab.evaluation.settings import is_setting

    files = [Path(word) for word in options.words if not is_setting(word)]
    print(show(*score_files(files, options.model, list(filter(is_setting, options.words)))).console())


if __name__ == "__main__":
    run_command(main)
