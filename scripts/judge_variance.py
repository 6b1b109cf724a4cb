"""Judge the same answers twice or more and measure the difference (the paper's figure 1).

python scripts/judge_variance.py RUN... judge=openai judge.budget_dollars=10
python scripts/judge_variance.py RUN... --benchmarks mt_bench --repeats 3 judge=local
python scripts/judge_variance.py --files alpaca_eval first/annotations.json second/annotations.json
"""

import argparse
from pathlib import Path

from rich.console import Console

from lab.evaluation.variance_command import DEFAULT_OUTPUT, measure_all
from sgdpo.console import fail, set_up_process

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="RUN or key=value", help="run folders and overrides")
    parser.add_argument("--benchmarks", nargs="+", default=["alpaca_eval", "mt_bench"])
    parser.add_argument("--repeats", type=int, default=2, help="how often each answer is judged")
    parser.add_argument(
        "--files", nargs="+", action="append", metavar="BENCHMARK FILE", help="judgments there are"
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="data of the figure")
    options = parser.parse_intermixed_args()
    set_up_process()
    try:
        table = measure_all(
            options.words, options.benchmarks, options.repeats, options.files or [], options.output
        )
    except ValueError as error:
        fail(str(error).splitlines())
    Console(width=140).print(table)
    print(f"data      {options.output}")
