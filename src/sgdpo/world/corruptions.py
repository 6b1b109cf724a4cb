"""How answers go wrong: one function each, the answer so far, its task and random numbers in, a worse answer out.

What a function makes may be equal to what it got (a swap of two equal letters); `verifiable.corrupt` tries again.
"""

import string
from random import Random

from sgdpo.world.tasks import CLOSINGS, FAMILIES, LETTERS, OPENINGS, Task


def swap(answer: str, task: Task, random: Random) -> str:
    """Exchange two neighbouring characters."""
    at = random.randrange(max(1, len(answer) - 1))
    return answer[:at] + answer[at : at + 2][::-1] + answer[at + 2 :]


def replace(answer: str, task: Task, random: Random) -> str:
    """Put another letter or digit in the place of one."""
    at = random.randrange(len(answer))
    pool = string.digits if answer[at].isdigit() else LETTERS.upper() if answer[at].isupper() else LETTERS
    return answer[:at] + random.choice(pool) + answer[at + 1 :]


def cut(answer: str, task: Task, random: Random) -> str:
    """Stop early."""
    return answer[: random.randint(1, max(1, len(answer) - 1))].strip()


def drop(answer: str, task: Task, random: Random) -> str:
    """Leave one character out."""
    at = random.randrange(len(answer))
    return answer[:at] + answer[at + 1 :]


def shortcut(answer: str, task: Task, random: Random) -> str:
    """Give the tempting wrong answer: the input, or half of what was asked."""
    return FAMILIES[task.family].shortcut(task.content)


def reform(answer: str, task: Task, random: Random) -> str:
    """Keep what is said and lose how: the other case, or separators that nobody asked for."""
    return random.choice((answer.swapcase(), "-".join(answer.replace(" ", "")), f"[{answer}]"))


def opening(answer: str, task: Task, random: Random) -> str:
    """Talk before the answer."""
    return random.choice(OPENINGS) + answer


def closing(answer: str, task: Task, random: Random) -> str:
    """Talk after the answer."""
    return answer + random.choice(CLOSINGS)


def again(answer: str, task: Task, random: Random) -> str:
    """Say the answer once more."""
    return f"{answer} {answer}"


SHORT = (swap, replace, cut, drop, shortcut, reform, opening, closing, again)
