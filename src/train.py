"""Train one run, or sweep over many: compose a run from conf/, check it, do it.

python src/train.py                                             the defaults: SGDPO on the tiny Llama
python src/train.py method=dpo model=tiny_qwen2 seed=3          any group or value overridden
python src/train.py -m ratio.chosen=0.6,0.8                     a sweep; sweep=ratio_grid is a named one
python src/train.py --cfg job --resolve                         print the resolved run
python src/train.py dry_run=true                                print the plan, load nothing
"""

from typing import Any

from sgdpo.console import expected_failures, fail, greet, hydra_command, run_command, set_up_process


@expected_failures()
def main(config: Any) -> None:
    """Do one composed run."""
    set_up_process()
    from sgdpo.config.compose import to_run_config
    from sgdpo.runs.validate import config_errors

    if errors := config_errors(config, greet):
        fail(errors)
    run = to_run_config(config)
    if run.dry_run:
        from lab.plan.planner import plan, render

        print(render(plan(run)))
        return
    from sgdpo.runs.run import execute
    from sgdpo.runs.summary import summarise

    with expected_failures(code=1):
        print(summarise(execute(run)))


if __name__ == "__main__":
    run_command(
        hydra_command("config", __doc__, main),
        stopped="the same command continues from the newest checkpoint",
    )
