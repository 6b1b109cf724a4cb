"""What theory predicts of each pilot, held against the code: the two weights of one pair, over many draws.

With rewards R and pilots P on the scale of rewards, SGDPO's weights are dw = sigma(P_l - R_w) and dl = sigma(R_l - P_w)
(times beta / 2). If each pilot is a share s of its side, P = s R, the difference of the two arguments is
-(1 - s)(R_w + R_l): dw exceeds dl exactly where the rewards' sum is below 0, and log(dw/dl) grows with 1 - s.
A draw of variance v changes the mean of dw by v sigma''/2: thousandths.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.method import Method, bind_method
from sgdpo.pairs import DrawKey, Pair, Side
from sgdpo.places import CONF
from sgdpo.runs.records import RunView
from sgdpo.training.incentives import incentive_sums
from sgdpo.values import AtLeast0, Range


def pilot_theory(
    runs: Sequence[RunView], *, lengths: tuple[int, int], rewards: tuple[float, float], ratio: float, spread: AtLeast0,
    draws: Annotated[int, Range("[2, 1000000]")] = 2000, seed: int = 0,
) -> Table:  # fmt: skip
    """Show every pilot's mean and deviation, and log(dw/dl): by the mean pilot's closed form, and by autograd.

    lengths, rewards: of the chosen and the rejected answer (tokens; beta R). spread: the deviation of a token's
    log-ratio, nats. draws: keys that the means are over.
    """
    rows: list[list[Entry | str]] = []
    for name in sorted(path.stem for path in (CONF / "pilot").glob("*.yaml")):
        method = bound(name, ratio, ratio)
        pair = _pair(lengths, [reward / method.hyper["beta"] for reward in rewards], spread, draws, seed)
        result = method(pair, DrawKey(seed))
        pilot_w, pilot_l = result.metrics["pilot/chosen"], result.metrics["pilot/rejected"]
        predicted = log_ratio(pilot_w.mean(), pilot_l.mean(), *rewards)
        total, count = incentive_sums(pair, result)["incentive/log_ratio"]
        share = [(result.metrics[f"pilot/size_{side}"].double().mean() / n).item()
                 for side, n in zip(("chosen", "rejected"), lengths, strict=True)]  # fmt: skip
        rows.append([name, *(number(s, 2) for s in share),
                     *(number(p.mean().item(), 3, sign="+") for p in (pilot_w, pilot_l)),
                     *(number(p.std().item(), 3) for p in (pilot_w, pilot_l)),
                     number(predicted, 3, sign="+"), number((total / count).item(), 3, sign="+")])  # fmt: skip
    header = ["pilot", "k/n chosen", "k/n rejected", "mean P chosen", "mean P rejected", "deviation, chosen",
              "deviation, rejected", "log(dw/dl), predicted", "log(dw/dl), measured"]  # fmt: skip
    facts = [
        f"A pair of {lengths[0]} and {lengths[1]} tokens, rewards {rewards[0]:g} and {rewards[1]:g}, a deviation of "
        f"{spread:g} nats a token, ratio {ratio:g}; {draws} draws. P on the scale of rewards.",
        "Predicted: the closed form at the mean pilot. Measured: autograd through the loss, mean over draws. DPO: 0.",
    ]
    return Table("", "", header, rows, 1, facts)


def bound(name: str, chosen: float, rejected: float) -> Method:
    """Bind SGDPO with a pilot of conf/pilot at these ratios; one that finds its tokens takes all it finds."""
    config = to_run_config(compose_run(["method=sgdpo", f"pilot={name}"]))
    if config.pilot["size"]["of"] == "found":
        chosen = rejected = 1.0
    return bind_method(config.method, {"chosen": chosen, "rejected": rejected}, pilot=config.pilot)


def _pair(lengths: Sequence[int], sums: Sequence[float], spread: float, draws: int, seed: int) -> Pair:
    """Return the same pair many times over, so that each copy has its own keys."""
    generator = torch.Generator().manual_seed(seed)
    sides = (
        side
        for n, total in zip(lengths, sums, strict=True)
        for side in _side(n, total, spread, draws, generator)
    )
    return Pair(*sides, torch.arange(draws))


def _side(n: int, total: float, spread: float, draws: int, generator: torch.Generator) -> Iterator[Side]:
    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    ratio_T = spread * torch.randn(n, generator=generator, dtype=torch.float64)
    ratio_T += total / n - ratio_T.mean()
    reference_T, features = -3 * uniform(), {"entropy": uniform(), "shared": (uniform() < 0.7).double()}
    wide = {name: value_T.expand(draws, n) for name, value_T in features.items()}
    mask_BT, reference_BT = torch.ones(draws, n, dtype=torch.bool), reference_T.expand(draws, n)
    yield Side((reference_BT + ratio_T).requires_grad_(), reference_BT, mask_BT, wide)


def log_ratio(pilot_w: Tensor, pilot_l: Tensor, reward_w: float, reward_l: float) -> float:
    return (logsigmoid(pilot_l - reward_w) - logsigmoid(reward_l - pilot_w)).item()
