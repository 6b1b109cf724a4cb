"""Run the demonstration: python scripts/demo.py [seed=1 ...]; what is finished is not done again."""

import sys

from sgdpo.console import fail, set_up_process

if __name__ == "__main__":
    set_up_process()
    from lab.demo import demonstrate  # imports torch, whose threads are set up above

    try:
        print(demonstrate(sys.argv[1:]))
    except ValueError as error:
        fail([str(error)])
