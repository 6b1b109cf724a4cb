"""What sequences share: the longest common subsequence of two, and what one says again.

The subsequence is bit-parallel (Hyyrö, 2004): a row of the usual table is one Python integer, so two answers of 1,000
tokens take about two milliseconds. Of several longest ones it is always the same.
"""

from collections.abc import Hashable, Sequence


def common(one: Sequence[Hashable], other: Sequence[Hashable]) -> tuple[list[bool], list[bool]]:
    """Return which items of each sequence lie in their longest common subsequence."""
    places: dict[Hashable, int] = {}
    for at, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << at
    # A zero at bit i of rows[j]: item i of `one` makes the common subsequence with the first j + 1 of `other` longer.
    rows, full = [(1 << len(one)) - 1], (1 << len(one)) - 1
    for item in other:
        matched = rows[-1] & places.get(item, 0)
        rows.append((rows[-1] + matched | rows[-1] - matched) & full)
    inside_one, inside_other = [False] * len(one), [False] * len(other)
    i, j = len(one), len(other)
    while i and j:
        if rows[j] >> i - 1 & 1:
            i -= 1
        elif not rows[j - 1] >> i - 1 & 1:
            j -= 1
        else:
            i, j = i - 1, j - 1
            inside_one[i] = inside_other[j] = True
    return inside_one, inside_other


def similarity(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Return the length of the longest common subsequence over that of the longer sequence; 1 for two empty ones."""
    longer = max(len(one), len(other))
    return sum(common(one, other)[0]) / longer if longer else 1.0


def runs(items: Sequence[Hashable], length: int) -> list[tuple[Hashable, ...]]:
    """List every `length` items in a row."""
    return [tuple(items[start : start + length]) for start in range(len(items) - length + 1)]


def repetition(items: Sequence[Hashable], length: int) -> float:
    """Return the share of runs of `length` items that came before, 0 to 1: what loops say again and again."""
    found = runs(items, length)
    return 1 - len(set(found)) / len(found) if found else 0.0
