"""SamPO: down-sampled DPO (Lu et al., 2024).

loss of a pair = -log sigma(beta (R_w[S_w] - R_l[S_l])), |S_w| = |S_l| = m = min(n_w, n_l).
The longer side keeps m tokens drawn uniformly without replacement, the shorter keeps all. At step 0: ln 2, if
policy and reference share the draw.

Departures from the authors' code: draws are keyed, and `draw: shared` (default) takes one subset for policy
and reference where their code draws the reference's again (`draw: independent`).
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from sgdpo.pairs import DrawKey, Pair, PairLoss, Ratios, rewards
from sgdpo.pilot import Draw, Pilot
from sgdpo.selects import uniform
from sgdpo.values import Above0

SHORTER = Pilot(uniform, {}, through="gradient")


def sampo(pair: Pair, *, beta: Above0, draw: Draw, draws: DrawKey) -> PairLoss:
    """Return SamPO's loss; gradient flows through the drawn tokens alone."""
    chosen, rejected = SHORTER.values(pair, Ratios(1, 1), draws, draw)
    taken = {"chosen": chosen.weight_BT, "rejected": rejected.weight_BT}
    return PairLoss(
        -logsigmoid(beta * (chosen.value_B - rejected.value_B)), *rewards(pair, beta), taken=taken
    )
