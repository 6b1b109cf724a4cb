"""Which tokens a pilot weighs: one function each, a `Place` in, weights BT out (bool for a subset).

With k = place.size_B tokens of n = place.count_B. Those that look at the model's numbers look at them without gradient.
Each is named by a YAML of conf/pilot.
"""

import torch
from torch import Tensor

from sgdpo import keyed
from sgdpo.pilot import CHOSEN, Place
from sgdpo.values import HalfOpenShare


def none(place: Place) -> Tensor:
    """Weigh nothing: SGDPO becomes half of BCO without its shift."""
    return torch.zeros_like(place.domain_BT)


def uniform(place: Place) -> Tensor:
    """Take k tokens uniformly without replacement: the paper."""
    return place.first()


def mean(place: Place) -> Tensor:
    """Weigh every token k/n: the expectation of `uniform` without its variance."""
    return place.share_B1 * place.domain_BT


def noise(place: Place) -> Tensor:
    """Give `uniform`'s two moments without a subset: mean + sqrt(k (1 - k/n)) S z, z a keyed standard normal.

    As weights: the sum over tokens of (d_t - mean d) d_t is (n - 1) S^2, S^2 the sample variance of d.
    """
    ratio_BT = place.side.ratio_BT.detach().double() * place.domain_BT
    count_B1, share_B1 = place.count_B[:, None], place.share_B1
    centred_BT = (ratio_BT - ratio_BT.sum(-1, keepdim=True) / count_B1) * place.domain_BT
    norm_B1 = centred_BT.square().sum(-1, keepdim=True).sqrt()  # S sqrt(n - 1)
    spread_B1 = (place.size_B.double()[:, None] * (1 - share_B1)).sqrt() * _normal(place)[:, None]
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


def prefix(place: Place) -> Tensor:
    """Take the first k tokens."""
    return (place.position_BT < place.size_B[:, None]) & place.domain_BT


def suffix(place: Place) -> Tensor:
    """Take the last k tokens."""
    return (place.position_BT >= (place.count_B - place.size_B)[:, None]) & place.domain_BT


def block(place: Place) -> Tensor:
    """Take k tokens in a row from a keyed start, around the end: every token has chance k/n."""
    start_B = (place.uniform_B() * place.count_B).long()
    away_BT = (place.position_BT - start_B[:, None]) % place.count_B[:, None]
    return (away_BT < place.size_B[:, None]) & place.domain_BT


def decay(place: Place, *, gamma: HalfOpenShare) -> Tensor:
    """Weigh tokens by gamma^t, k in all."""
    weight_BT = gamma ** place.position_BT.double() * place.domain_BT
    return weight_BT * (place.size_B.double() / weight_BT.sum(-1))[:, None]


def confident(place: Place) -> Tensor:
    """Take the k tokens that the reference finds likeliest."""
    return place.least(-place.side.reference_BT)


def surprising(place: Place) -> Tensor:
    """Take the k tokens that the reference finds least likely."""
    return place.least(place.side.reference_BT)


def unsure(place: Place) -> Tensor:
    """Take the k tokens that the policy finds least likely."""
    return place.least(place.side.logp_BT.detach())


def large(place: Place) -> Tensor:
    """Take the k tokens of largest absolute log-ratio."""
    return place.least(-place.side.ratio_BT.detach().abs())


def helpful(place: Place) -> Tensor:
    """Take the k tokens of largest log-ratio on the chosen side, of smallest on the rejected one."""
    ratio_BT = place.side.ratio_BT.detach()
    return place.least(-ratio_BT if place.number == CHOSEN else ratio_BT)


def entropy(place: Place) -> Tensor:
    """Take the k tokens at which the policy's distribution has most entropy."""
    return place.least(-place.side.features["entropy"])


def shared(place: Place) -> Tensor:
    """Take the tokens inside the longest common subsequence of the two answers."""
    return place.domain_BT & (place.side.features["shared"] > 0)


def differing(place: Place) -> Tensor:
    """Take the tokens outside the longest common subsequence of the two answers."""
    return place.domain_BT & (place.side.features["shared"] == 0)


def _normal(place: Place) -> Tensor:
    return torch.special.ndtri(place.uniform_B())
