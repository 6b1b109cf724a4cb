"""Evaluate runs on a benchmark with a judge; results go into each run's record.

python scripts/evaluate.py RUN... benchmark=verifiable
python scripts/evaluate.py RUN... benchmark=alpaca_eval judge=openai judge.budget_dollars=10
python scripts/evaluate.py RUN... benchmark=mt_bench judge=local
"""

import sys

import hydra
from omegaconf import DictConfig

from sgdpo.config.compose import list_errors
from sgdpo.config.help import help_asked, help_page
from sgdpo.console import expected_failures, fail, run_command, set_up_process


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
@expected_failures()
def main(config: DictConfig) -> None:
    set_up_process()
    from lab.evaluation.settings import evaluation_errors, to_evaluate_config

    evaluation = to_evaluate_config(config)
    if errors := evaluation_errors(evaluation):
        fail(errors)
    from lab.evaluation.command import show  # heavy imports only once the settings are sound
    from lab.evaluation.evaluate import evaluate

    with expected_failures(code=1):
        print(show(evaluation.benchmark, evaluate(evaluation)).console())


def command(arguments: list[str]) -> None:
    """Answer --help, or let Hydra compose what the command line asks for."""
    if help_asked(arguments):
        print(help_page("evaluate", __doc__, arguments))
        return
    from lab.evaluation.settings import register_schema, runs_first

    register_schema()
    sys.argv[1:] = runs_first(arguments)
    if errors := list_errors(sys.argv[1:]):
        fail(errors)
    main()


if __name__ == "__main__":
    run_command(command, stopped="the same command continues: what was judged is kept")
