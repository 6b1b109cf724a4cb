"""Whole numbers times decimals, exactly: 0.7 of 90 is 63, where floats say 62."""

import math
from decimal import Decimal

import torch
from torch import Tensor

_LIMB_DIGITS = 9


def floor_product(count_B: Tensor, share: float) -> Tensor:
    """Return floor(share * count), int64, exact for the decimal that `share` prints as.

    count_B: int64, at most 2**32. share: in [0, 1].
    The decimals are multiplied nine at a time, from the right, so that no product leaves 64 bits.
    """
    decimal = Decimal(str(share))
    limbs = max(-(-max(-decimal.as_tuple().exponent, 0) // _LIMB_DIGITS), 1)
    left = int(decimal.scaleb(limbs * _LIMB_DIGITS))
    carry_B = torch.zeros_like(count_B)
    for _ in range(limbs):
        left, limb = divmod(left, 10**_LIMB_DIGITS)
        carry_B = (count_B * limb + carry_B) // 10**_LIMB_DIGITS
    return count_B * left + carry_B


def ceil_product(count: int, share: float) -> int:
    """Return ceil(share * count), exact for the decimal that `share` prints as: 1.1 of 90 is 99, not 100."""
    return math.ceil(Decimal(str(share)) * count)
