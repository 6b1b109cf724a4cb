"""Make a run of a model as it is, nothing trained, so that it can be evaluated and stand in tables beside others.

python scripts/start.py model=smollm2_135m data=sampled data.folder=outputs/sampled/... experiment=constraints
python scripts/start.py --seeds 42,43,44 ...     one for each seed of the runs that it stands beside: the same weights
"""

from sgdpo.console import Parser, fail, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="the settings of a run: model, data"
    )
    parser.add_argument("--seeds", default="", help="comma between; one run each, instead of seed=...")
    options = parser.parse_intermixed_args(arguments)
    if options.seeds and any(word.startswith("seed=") for word in options.overrides):
        parser.error("give one run's seed=... or several runs' --seeds, not both")
    set_up_process()
    from sgdpo.config.compose import compose_run, to_run_config
    from sgdpo.runs.untrained import untrained
    from sgdpo.runs.validate import config_errors

    seeds = [[f"seed={seed}"] for seed in options.seeds.split(",")] if options.seeds else [[]]
    configs = [compose_run([*options.overrides, *seed]) for seed in seeds]
    for config in configs:
        if errors := config_errors(config):
            fail(errors)
    for config in configs:
        print(untrained(to_run_config(config)))


if __name__ == "__main__":
    run_command(main)
