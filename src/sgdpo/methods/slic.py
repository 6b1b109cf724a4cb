"""SLiC-HF: sequence likelihood calibration (Zhao et al., 2023, arXiv 2305.10425).

loss of a pair = max(0, delta - l_w + l_l) - lambda l_w, l the policy's log-prob. No reference; the rewards are its
own, l.
"""

from __future__ import annotations

import torch

from sgdpo.pairs import Pair, PairLoss
from sgdpo.values import Above0, AtLeast0


def slic(pair: Pair, *, delta: Above0, lam: AtLeast0) -> PairLoss:
    """Ask for `delta` nats between the answers, and keep the chosen one likely."""
    chosen_B, rejected_B = pair.chosen.logp_B, pair.rejected.logp_B
    loss_B = torch.relu(delta - chosen_B + rejected_B) - lam * chosen_B
    return PairLoss(loss_B, chosen_B.detach(), rejected_B.detach())
