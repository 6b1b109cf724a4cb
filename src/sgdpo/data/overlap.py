"""Add to a packed row which tokens the two answers of a pair share, for the pilots that ask."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator
from sgdpo.overlap import common


class OverlapCollator(RowCollator):
    """Make a row as RowCollator does, with `shared` (L, float32): 1 inside the longest common subsequence, else 0."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        sides = [common(*(ids.tolist() for ids in e.trained_ids)) for e in examples]
        inside = [flag for number in (0, 1) for side in sides for flag in side[number]]
        return super().__call__(examples) | {"shared": torch.tensor(inside, dtype=torch.float32)}
