"""Train in rounds on the policy's own answers: sample, pair, train, evaluate, as often as `rounds` says.

python scripts/rounds.py rounds=3 method=dpo model=smollm2_135m data=constraints evaluate.benchmark=constraints
python scripts/rounds.py rounds=2 begin_from=first sample.answers=8 sample.temperature=1 optimizer.lr=1e-6 ...

Words are overrides: those of conf/rounds.yaml (rounds, begin_from, refer_to, prompts), `sample.KEY=` ones of
conf/sample.yaml, `evaluate.KEY=` ones of conf/evaluate.yaml, all others of the runs, whose data gives the prompts.
"""

import logging
import sys

from sgdpo.console import Parser, expected_failures, fail, run_command, set_up_process


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as above")
    words = parser.parse_args(arguments).overrides
    set_up_process()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    from lab.sampling.rounds import Chain

    chain = Chain.of(words)
    if errors := chain.errors():
        fail(errors)
    from lab.evaluation.command import show

    with expected_failures(code=1):
        results = dict(chain.go())
        print(show(chain.evaluation.benchmark, results).console())
        print("\n".join(f"run       {folder}" for folder in results))


if __name__ == "__main__":
    run_command(main, stopped="the same command continues: what was sampled, trained or judged is kept")
