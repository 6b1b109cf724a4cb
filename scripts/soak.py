"""Kill runs at random moments and check that they end as if nothing had happened.

python scripts/soak.py --kills 100              all cases, their kills in turn
python scripts/soak.py --case zero3 --kills 5   one case

Ends with 1 if any run ended otherwise than one left alone.
"""

import tempfile
from pathlib import Path

from sgdpo.console import Parser, number, run_command


def main(arguments: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--kills", type=number(int, "[1, 100000]"), default=100, help="SIGKILLs, over all cases"
    )
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    parser.add_argument("--seed", type=number(int, "[0, 4294967296)"), default=0, help="seed of the moments")
    options = parser.parse_args(arguments)
    from tqdm import tqdm

    from lab.soak import CASES, render, soak

    cases = options.case or list(CASES)
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"argument --case: {', '.join(unknown)} is none of {', '.join(CASES)}")
    outcomes = []
    with tqdm(total=options.kills, unit="kill") as bar:
        for position, case in enumerate(cases):
            kills = options.kills // len(cases) + (position < options.kills % len(cases))
            bar.set_description(case)
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(soak(case, kills, options.seed, Path(folder), bar.update))
            bar.write(render(outcomes[-1:]).splitlines()[1])
    print("\n" + render(outcomes))
    return int(any(outcome.differences for outcome in outcomes))


if __name__ == "__main__":
    run_command(main)
