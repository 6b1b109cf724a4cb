"""Kill runs at random moments and check that they end as if nothing had happened.

python scripts/soak.py --kills 100              all cases, their kills in turn
python scripts/soak.py --case zero3 --kills 5   one case
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from lab.soak import CASES, render, soak


def main() -> int:
    """Print the table; return 1 if any run ended otherwise than one left alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in all, spread over the cases")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args()
    cases = options.case or list(CASES)
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
    sys.exit(main())
