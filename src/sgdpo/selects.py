"""Which tokens a pilot weighs: one function each, a `Place` in, weights BT out (bool for a subset).

With k = place.size_B tokens of n = place.count_B. Those that look at the model's numbers look at them without gradient.
Each is named by a YAML of conf/pilot.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sgdpo import keyed
from sgdpo.pilot import CHOSEN, Place
from sgdpo.values import HalfOpenShare

# What tokens can be ranked by.
NUMBERS: dict[str, Callable[[Place], Tensor]] = {
    "position": lambda place: place.position_BT,
    "reference": lambda place: place.side.reference_BT,
    "policy": lambda place: place.side.logp_BT.detach(),
    "moved": lambda place: place.side.ratio_BT.detach().abs(),
    # Up on the chosen side, down on the rejected one.
    "helpful": lambda place: place.side.ratio_BT.detach() * (1 if place.number == CHOSEN else -1),
}


def none(place: Place) -> Tensor:
    """Weigh nothing: SGDPO becomes half of BCO without its shift."""
    return torch.zeros_like(place.domain_BT)


def uniform(place: Place) -> Tensor:
    """Take k tokens uniformly without replacement: the paper."""
    return place.least(place.bits_BT())


def noise(place: Place) -> Tensor:
    """Give `uniform`'s two moments without a subset: mean + sqrt(k (1 - k/n)) S z, z a keyed standard normal.

    As weights: the sum over tokens of (d_t - mean d) d_t is (n - 1) S^2, S^2 the sample variance of d.
    """
    ratio_BT = place.side.ratio_BT.detach().double() * place.domain_BT
    count_B1, share_B1 = place.count_B[:, None], place.share_B1
    centred_BT = (ratio_BT - ratio_BT.sum(-1, keepdim=True) / count_B1) * place.domain_BT
    norm_B1 = centred_BT.square().sum(-1, keepdim=True).sqrt()  # S sqrt(n - 1)
    normal_B1 = torch.special.ndtri(place.uniform_B())[:, None]
    spread_B1 = (place.size_B.double()[:, None] * (1 - share_B1)).sqrt() * normal_B1
    step_BT = centred_BT / (norm_B1 * (count_B1 - 1).clamp(min=1).sqrt()).clamp(min=1e-300)
    return (share_B1 + spread_B1 * step_BT) * place.domain_BT


def bernoulli(place: Place) -> Tensor:
    """Take each token with probability k/n."""
    return (keyed.uniform(place.bits_BT()) < place.share_B1) & place.domain_BT


def stratified(place: Place) -> Tensor:
    """Take one token of each of k equal strata."""
    stratum_BT = (place.position_BT * place.size_B[:, None] // place.count_B[:, None]).clamp(min=0)
    bits_BT = place.bits_BT()
    least_BT = torch.full_like(bits_BT, torch.iinfo(torch.int64).max).scatter_reduce(
        1, stratum_BT, bits_BT, "amin"
    )
    return (bits_BT == least_BT.gather(1, stratum_BT)) & place.domain_BT & (place.size_B > 0)[:, None]


def stride(place: Place) -> Tensor:
    """Take every (n/k)-th token from a keyed start."""
    start_B1, at_BT = place.uniform_B()[:, None], place.position_BT.double()
    before_BT, after_BT = (((at_BT + more) * place.share_B1 + start_B1).floor() for more in (0, 1))
    return (after_BT > before_BT) & place.domain_BT


def block(place: Place) -> Tensor:
    """Take k tokens in a row from a keyed start, around the end: every token has chance k/n."""
    start_B = (place.uniform_B() * place.count_B).long()
    away_BT = (place.position_BT - start_B[:, None]) % place.count_B[:, None]
    return (away_BT < place.size_B[:, None]) & place.domain_BT


def decay(place: Place, *, gamma: HalfOpenShare) -> Tensor:
    """Weigh tokens by gamma^t, k in all; with gamma 1 every one k/n, the expectation of `uniform` without variance."""
    weight_BT = gamma ** place.position_BT.double() * place.domain_BT
    return weight_BT * (place.size_B.double() / weight_BT.sum(-1))[:, None]


def ranked(
    place: Place, *, by: Literal["position", "reference", "policy", "moved", "helpful"], largest: bool
) -> Tensor:
    """Take the k tokens of which a number is smallest, or largest; of equal ones the earlier."""
    value_BT = NUMBERS[by](place)
    return place.least(-value_BT if largest else value_BT)


def entropy(place: Place) -> Tensor:
    """Take the k tokens at which the policy's distribution has most entropy."""
    return place.least(-place.side.features["entropy"])


def common(place: Place, *, inside: bool) -> Tensor:
    """Take the tokens inside, or outside, the longest common subsequence of the two answers."""
    return place.domain_BT & ((place.side.features["shared"] > 0) == inside)
