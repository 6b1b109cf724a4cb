"""Evaluate runs on a benchmark with a judge; results go into each run's record.

python scripts/evaluate.py RUN... benchmark=verifiable
python scripts/evaluate.py RUN... benchmark=alpaca_eval judge=openai judge.budget_dollars=10
python scripts/evaluate.py RUN... benchmark=mt_bench judge=local
"""

import sys

import hydra
from omegaconf import DictConfig

from lab.evaluation.command import runs_first, show
from lab.evaluation.settings import evaluation_errors, register_schema, to_evaluate_config
from sgdpo.console import fail, set_up_process

register_schema()


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    """Do one composed evaluation."""
    set_up_process()
    try:
        evaluation = to_evaluate_config(config)
        if errors := evaluation_errors(evaluation):
            fail(errors)
        from lab.evaluation.evaluate import evaluate  # heavy imports only once the settings are sound

        print(show(evaluate(evaluation)))
    except ValueError as error:
        fail(str(error).splitlines())


if __name__ == "__main__":
    sys.argv[1:] = runs_first(sys.argv[1:])
    sys.exit(main())
