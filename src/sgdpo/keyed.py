"""Random numbers without state: what is drawn for something depends on its key alone.

A counter-based generator, splitmix64 (Steele et al., 2014): the t-th number of a stream is a bijection of t, so the
same key gives the same number for any rank count, order, padding, packing and after a resume, and no two numbers of a
stream tie. int64 stands for 64 bits throughout; it wraps as the unsigned form does.
"""

from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))
_MASK = (1 << 64) - 1


def mix64_(x: Tensor) -> Tensor:
    """Scramble int64 in place: splitmix64's finaliser."""
    for bits, factor in _ROUNDS:
        x ^= _shifted(x, bits)
        if factor is not None:
            x *= signed(factor)
    return x


def stream(key_B: Tensor, count_BT: Tensor) -> Tensor:
    """Return number `count` (from 1) of each key's stream, int64 BT; `count_BT` is used up."""
    return mix64_(count_BT.mul_(signed(GOLDEN)).add_(key_B[:, None]))


def uniform(bits: Tensor) -> Tensor:
    """Return int64 as numbers in (0, 1), float64: 53 of the bits, centred, so never 0 and never 1."""
    return (_shifted(bits, 11).double() + 0.5) * 2.0**-53


def fold(*words: int) -> int:
    """Hash a few integers of any size or sign to 64 bits, on the host."""
    state = 0
    for word in words:
        state = (state + GOLDEN + (word & _MASK)) & _MASK
        for bits, factor in _ROUNDS:
            state ^= state >> bits
            if factor is not None:
                state = (state * factor) & _MASK
    return state


def signed(word: int) -> int:
    """Return the int64 with the same 64 bits."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right; torch shifts int64 arithmetically, and the mask makes it the logical shift."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
