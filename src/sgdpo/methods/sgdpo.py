"""SGDPO: Self-Guided Direct Preference Optimization (Zhu et al., Findings of ACL 2025).

loss of a pair = -1/2 log sigma(beta (R_w - P_l)) - 1/2 log sigma(beta (P_w - R_l)), with pilots
P_w = sg R_w[S_w], P_l = sg R_l[S_l], |S_w| = max(floor(r1 m), 1), |S_l| = max(floor(r2 m), 1), and
m = min(n_w, n_l); S is drawn uniformly without replacement over the whole completion (`pilot=uniform`; other pilots
are other YAMLs of conf/pilot); sg stops the gradient.
At step 0: ln 2, if policy and reference share the draw.

Departures from the paper and its code: draws are keyed; floor(r m) is exact; `draw: shared` (default, as in
the released code) takes one subset for policy and reference, `independent` is another reading of the paper's
Pilot_d.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.pairs import DrawKey, Pair, PairLoss, Ratios, rewards
from sgdpo.pilot import Draw, Pilot
from sgdpo.theory import log_balance
from sgdpo.values import Above0


def sgdpo(pair: Pair, *, beta: Above0, draw: Draw, ratios: Ratios, draws: DrawKey, pilot: Pilot) -> PairLoss:
    """Return SGDPO's loss; gradient flows through R_w and R_l, none through the pilots (`pilot.through: value`).

    metrics: `pilot/chosen`, `pilot/rejected` (beta P), `pilot/abs_chosen`, `pilot/abs_rejected` (their magnitudes),
    `pilot/log_balance` (log f of Theorem 3; 0 is DPO's balance), `pilot/size_chosen`, `pilot/size_rejected` (tokens),
    `pilot/ratio_chosen` and `pilot/ratio_rejected` (k/m, which rounding makes smaller than the ratio asked for).
    """
    pilot_w, pilot_l = pilot.values(pair, ratios, draws, draw)
    up_B = logsigmoid(beta * (pair.chosen.ratio_B - pilot_l.value_B))
    down_B = logsigmoid(beta * (pilot_w.value_B - pair.rejected.ratio_B))
    chosen_B, rejected_B = rewards(pair, beta)
    metrics = _metrics(chosen_B, rejected_B, beta * pilot_w.value_B.detach(), beta * pilot_l.value_B.detach())
    for name, piece in (("chosen", pilot_w), ("rejected", pilot_l)):
        metrics |= {f"pilot/size_{name}": piece.size_B, f"pilot/ratio_{name}": piece.size_B / piece.shorter_B}
    taken = {"chosen": pilot_w.weight_BT, "rejected": pilot_l.weight_BT}
    return PairLoss(-0.5 * (up_B + down_B), chosen_B, rejected_B, metrics, taken=taken)


def _metrics(chosen_B: Tensor, rejected_B: Tensor, pilot_w_B: Tensor, pilot_l_B: Tensor) -> dict[str, Tensor]:
    """Return the pilots' numbers; log p, log q and log u are differences of rewards and pilot rewards."""
    balance_B = log_balance(pilot_w_B - chosen_B, pilot_l_B - rejected_B, chosen_B - rejected_B)
    return {
        "pilot/chosen": pilot_w_B, "pilot/rejected": pilot_l_B, "pilot/abs_chosen": pilot_w_B.abs(),
        "pilot/abs_rejected": pilot_l_B.abs(), "pilot/log_balance": balance_B,
    }  # fmt: skip
