"""SamPO: down-sampled DPO (Lu et al., 2024).

loss of a pair = -log sigma(beta (R_w[S_w] - R_l[S_l])), |S_w| = |S_l| = m = min(n_w, n_l).
The longer side keeps m tokens drawn uniformly without replacement, the shorter keeps all. At step 0: ln 2, if
policy and reference share the draw.

Departures from the authors' code: draws are keyed, and `draw: shared` (default) takes one subset for policy
and reference where their code draws the reference's again (`draw: independent`).
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from sgdpo.pairs import DrawKey, Pair, PairLoss, rewards
from sgdpo.pilot import CHOSEN, REJECTED, Draw, subset_ratio
from sgdpo.values import Above0


def sampo(pair: Pair, *, beta: Above0, draw: Draw, draws: DrawKey) -> PairLoss:
    """Return SamPO's loss; gradient flows through the drawn tokens alone."""
    size_B = torch.minimum(pair.chosen.length_B, pair.rejected.length_B)
    chosen_B = subset_ratio(pair.chosen, size_B, pair.example_id_B, CHOSEN, draws, draw)
    rejected_B = subset_ratio(pair.rejected, size_B, pair.example_id_B, REJECTED, draws, draw)
    return PairLoss(-logsigmoid(beta * (chosen_B - rejected_B)), *rewards(pair, beta))
