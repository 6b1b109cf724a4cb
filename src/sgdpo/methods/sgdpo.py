"""SGDPO: Self-Guided Direct Preference Optimization (Zhu et al., Findings of ACL 2025).

loss of a pair = -1/2 log sigma(beta (R_w - P_l)) - 1/2 log sigma(beta (P_w - R_l)), with pilots
P_w = sg R_w[S_w], P_l = sg R_l[S_l], |S_w| = max(floor(r1 m), 1), |S_l| = max(floor(r2 m), 1), and
m = min(n_w, n_l); S is drawn uniformly without replacement over the whole completion; sg stops the gradient.
At step 0: ln 2, if policy and reference share the draw.

Departures from the paper and its code: draws are keyed; floor(r m) is exact; `draw: shared` (default, as in
the released code) takes one subset for policy and reference, `independent` is another reading of the paper's
Pilot_d.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import DrawKey, Pair, PairLoss, Ratios, rewards
from sgdpo.pilot import CHOSEN, REJECTED, Draw, pilot_size, subset_ratio
from sgdpo.theory import log_balance


def sgdpo(pair: Pair, *, beta: float, draw: Draw, ratios: Ratios, draws: DrawKey) -> PairLoss:
    """Return SGDPO's loss; gradient flows through R_w and R_l, none through the pilots.

    metrics: `pilot/chosen`, `pilot/rejected` (beta P), `pilot/log_balance` (log f of Theorem 3; 0 is DPO's
    balance), `pilot/size_chosen`, `pilot/size_rejected` (tokens).
    """
    shorter_B = torch.minimum(pair.chosen.length_B, pair.rejected.length_B)
    size_w_B, size_l_B = pilot_size(shorter_B, ratios.chosen), pilot_size(shorter_B, ratios.rejected)
    pilot_w_B = subset_ratio(pair.chosen, size_w_B, pair.example_id_B, CHOSEN, draws, draw).detach()
    pilot_l_B = subset_ratio(pair.rejected, size_l_B, pair.example_id_B, REJECTED, draws, draw).detach()
    up_B = logsigmoid(beta * (pair.chosen.ratio_B - pilot_l_B))
    down_B = logsigmoid(beta * (pilot_w_B - pair.rejected.ratio_B))
    chosen_B, rejected_B = rewards(pair, beta)
    metrics = _metrics(chosen_B, rejected_B, beta * pilot_w_B, beta * pilot_l_B)
    metrics |= {"pilot/size_chosen": size_w_B, "pilot/size_rejected": size_l_B}
    return PairLoss(-0.5 * (up_B + down_B), chosen_B, rejected_B, metrics)


def _metrics(chosen_B: Tensor, rejected_B: Tensor, pilot_w_B: Tensor, pilot_l_B: Tensor) -> dict[str, Tensor]:
    """Return the pilots' numbers; log p, log q and log u are differences of rewards and pilot rewards."""
    balance_B = log_balance(pilot_w_B - chosen_B, pilot_l_B - rejected_B, chosen_B - rejected_B)
    return {"pilot/chosen": pilot_w_B, "pilot/rejected": pilot_l_B, "pilot/log_balance": balance_B}
