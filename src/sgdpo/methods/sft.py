"""Supervised fine-tuning on the chosen conversation.

loss of a pair = -sum_t log pi(y_t). The trainer divides the sum over pairs by the completion tokens of the
global batch, so a token weighs the same whatever the micro-batch.
"""

from __future__ import annotations

from sgdpo.pairs import Pair, PairLoss


def sft(pair: Pair) -> PairLoss:
    """Return the negative log-likelihood of the trained chosen tokens, nats, summed over tokens."""
    chosen = pair.chosen
    return PairLoss(loss_B=-(chosen.logp_BT * chosen.mask_BT).sum(-1))
