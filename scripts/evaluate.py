"""Evaluate runs on a benchmark with a judge; results go into each run's record.

python scripts/evaluate.py RUN... benchmark=verifiable
python scripts/evaluate.py RUN... benchmark=alpaca_eval judge=openai judge.budget_tokens=100000
python scripts/evaluate.py RUN... benchmark=mt_bench judge=local
python scripts/evaluate.py RUN... n_jobs=2                   # so many runs at a time
"""

from pathlib import Path
from typing import Any

from sgdpo.console import expected_failures, fail, hydra_command, run_command, set_up_process


@expected_failures()
def main(config: Any) -> None:
    set_up_process()
    from lab.evaluation.settings import EvaluateConfig, absent, evaluation_errors
    from sgdpo.config.compose import to_typed

    evaluation = to_typed(config, EvaluateConfig)
    if errors := evaluation_errors(evaluation) or absent(evaluation):
        fail(errors)
    from lab.evaluation.command import show  # heavy imports only once the settings are sound
    from lab.sweeps.evaluations import evaluate_all

    with expected_failures(code=1):
        results = evaluate_all(evaluation)
        print(show(evaluation.benchmark, results).console())
        print(
            "\n".join(f"result    {Path(run, result['samples']).parent}" for run, result in results.items())
        )


def prepare(arguments: list[str]) -> list[str]:
    from lab.evaluation.settings import runs_first

    return runs_first(arguments)


if __name__ == "__main__":
    run_command(
        hydra_command("evaluate", __doc__, main, prepare, "lab.evaluation.settings.EvaluateConfig"),
        stopped="the same command continues: what was judged is kept",
    )
