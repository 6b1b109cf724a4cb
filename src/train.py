"""The entrypoint: compose a run, check it, do it.

python src/train.py                                             the defaults: SGDPO on the tiny Llama
python src/train.py method=dpo model=tiny_qwen2 seed=3          any group or value overridden
python src/train.py -m ratio.chosen=0.6,0.8                     a multirun
python src/train.py --cfg job --resolve                         print the resolved run
python src/train.py dry_run=true                                print the plan, load nothing
"""

import sys

import hydra
from omegaconf import DictConfig

from sgdpo.config.compose import list_errors, register_schema, to_run_config
from sgdpo.console import fail, greet, set_up_process

register_schema()


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """Do one composed run."""
    set_up_process()
    from sgdpo.runs.validate import config_errors  # heavy imports only once the config composes

    if errors := config_errors(config):
        fail(errors)
    run = to_run_config(config)
    if run.dry_run:
        from lab.plan.planner import plan, render

        print(render(plan(run)))
        return
    from sgdpo.runs.run import execute
    from sgdpo.runs.summary import summarise

    greet(run)
    try:
        folder = execute(run)
    except ValueError as error:
        fail([str(error)])
    print(summarise(folder))


if __name__ == "__main__":
    if errors := list_errors(sys.argv[1:]):
        fail(errors)
    sys.exit(main())
