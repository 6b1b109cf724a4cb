"""Judge the same answers twice or more and measure the difference (the paper's figure 1).

python scripts/judge_variance.py RUN... judge=openai judge.budget_tokens=100000
python scripts/judge_variance.py RUN... --benchmarks mt_bench --repeats 3 judge=local
python scripts/judge_variance.py --files alpaca_eval first/annotations.json second/annotations.json
"""

from contextlib import nullcontext
from pathlib import Path

from sgdpo.console import Parser, expected_failures, number, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="RUN or key=value", help="run folders and overrides")
    parser.add_argument("--benchmarks", nargs="+", default=["alpaca_eval", "mt_bench"])
    parser.add_argument(
        "--repeats", type=number(int, "[2, 1000]"), default=2, help="how often each is judged"
    )
    parser.add_argument(
        "--files", nargs="+", action="append", metavar="BENCHMARK FILE", help="judgments there are"
    )
    parser.add_argument("--config-dir", help="a folder of your own with benchmark/, judge/ or generator/")
    parser.add_argument("--output", type=Path, help="data of the figure")
    options = parser.parse_intermixed_args(arguments)
    set_up_process()
    from lab.evaluation.settings import is_setting
    from lab.evaluation.variance import DEFAULT_OUTPUT, asked, measure_all

    output, files = options.output or DEFAULT_OUTPUT, options.files or []
    # An override behind the benchmarks is none of them.
    names = [word for word in options.benchmarks if not is_setting(word)]
    words = [*options.words, *filter(is_setting, options.benchmarks)]
    if not names:
        parser.error("--benchmarks names none")
    if files and words:
        parser.error(f"--files compares the judgments in files: leave {' '.join(words)} out")
    words += [f"--config-dir={options.config_dir}"] if options.config_dir else []
    configs = [] if files else asked(words, names, options.repeats)
    with expected_failures(code=1) if configs else nullcontext():
        table = measure_all(configs, options.repeats, files, output)
    print(table.console())
    print(f"data      {output}")


if __name__ == "__main__":
    run_command(main)
