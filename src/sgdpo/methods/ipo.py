"""IPO: Identity Preference Optimization (Azar et al., 2024, equation 17).

loss of a pair = (R_w/n_w - R_l/n_l - 1/(2 beta))^2, beta being the paper's tau. At step 0: 1/(4 beta^2).

Departure from the equation: log-ratios are means over a side's tokens, which the IPO authors confirmed to be
meant; `length_average: false` gives the printed, summed form. Lengths come from the mask, never from non-zero
log-ratios.
"""

from __future__ import annotations

from sgdpo.pairs import Pair, PairLoss, rewards
from sgdpo.values import Above0


def ipo(pair: Pair, *, beta: Above0, length_average: bool) -> PairLoss:
    """Return IPO's squared distance of the (mean) log-ratio margin from 1/(2 beta)."""
    chosen_B, rejected_B = pair.chosen.ratio_B, pair.rejected.ratio_B
    if length_average:
        chosen_B = chosen_B / pair.chosen.length_B
        rejected_B = rejected_B / pair.rejected.length_B
    return PairLoss((chosen_B - rejected_B - 1 / (2 * beta)).square(), *rewards(pair, beta))
