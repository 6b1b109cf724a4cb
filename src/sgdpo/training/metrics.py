"""One definition of every metric, for every method: a sum and a count, reduced once.

A mean of means is wrong over an uneven last batch and over ranks, so nothing here averages before the end.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sgdpo.method import Method
from sgdpo.pairs import DrawKey, Pair, PairLoss, Side
from sgdpo.training.incentives import Sums, incentive_sums


def pair_metrics(pair: Pair, result: PairLoss, loss_count: Tensor) -> Sums:
    """Return (sum, count) of every metric of a row, float64 scalars on the row's device.

    loss_count: what the loss is divided by: pairs, or trained tokens in the SFT phase; weighed, if the pairs are.
    Rewards are nats times beta over whole completions; logps are summed over a completion's real tokens; log-ratios and
    features are means over tokens.
    """
    pairs = torch.full_like(loss_count, result.loss_B.numel())
    values = {"logps/chosen": pair.chosen.logp_BT.sum(-1), "lengths/chosen": pair.chosen.length_B}
    if pair.rejected is not None:
        values["logps/rejected"] = pair.rejected.logp_BT.sum(-1)
        values["lengths/rejected"] = pair.rejected.length_B
    if result.chosen_reward_B is not None:
        chosen_B, rejected_B = result.chosen_reward_B, result.rejected_reward_B
        values["rewards/chosen"], values["rewards/rejected"] = chosen_B, rejected_B
        values["rewards/margins"] = chosen_B - rejected_B
        values["rewards/accuracies"] = chosen_B > rejected_B
    values.update(result.metrics)
    sums = {key: (value_B.detach().double().sum(), pairs) for key, value_B in values.items()}
    for name, side in {"chosen": pair.chosen, "rejected": pair.rejected}.items():
        if side is not None:
            sums |= {f"{key}/{name}": total for key, total in _over_tokens(side).items()}
    incentives = incentive_sums(pair, result) if result.chosen_reward_B is not None else {}
    loss_B = pair.weighted(result.loss_B.detach().double())
    return {"loss": (loss_B.sum(), loss_count), **sums, **incentives}


def _over_tokens(side: Side) -> Sums:
    """Return (sum, count) over a side's tokens of its log-ratio, nats, and of each feature."""
    values = {key: (value_BT * side.mask_BT).double().sum() for key, value_BT in side.features.items()}
    if side.reference_BT is not None:
        values["log_ratio"] = side.ratio_BT.detach().double().sum()
    return {key: (total, side.length_B.sum()) for key, total in values.items()}


def metric_names(method: Method) -> list[str]:
    """List the metrics that a method's pairs have, read off a pair of two tokens."""

    def side() -> Side:
        logp_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        values_BT = logp_BT.detach()
        reference_BT = values_BT - 0.1 if method.reference else None
        return Side(logp_BT, reference_BT, values_BT < 0, dict.fromkeys(method.features, values_BT))

    score_B = torch.ones(1) if method.scores else None
    pair = Pair(side(), side() if method.phase != "sft" else None, torch.tensor([0]), score_B, score_B)
    result = method(pair, DrawKey(0), method.new_state())
    return sorted(pair_metrics(pair, result, torch.tensor(1.0)))


class MetricSums:
    """Add up (sum, count) on the device between two log lines; nothing is read back before `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, sums: Sums) -> None:
        for key, (total, count) in sums.items():
            if key in self._sums:
                total, count = self._sums[key][0] + total, self._sums[key][1] + count
            self._sums[key] = (total, count)

    def state(self) -> dict[str, list[float]]:
        """Return what has been added since the last `take`, on this rank; JSON keeps every bit of it."""
        return {key: [float(total), float(count)] for key, (total, count) in self._sums.items()}

    def restore(self, states: Iterable[Mapping[str, list[float]]], device: torch.device) -> None:
        """Add what `state` returned, of one rank or several."""
        for state in states:
            self.add(
                {k: tuple(torch.tensor(v, dtype=torch.float64, device=device)) for k, v in state.items()}
            )

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last call, summed over ranks by one `reduce`, and start again."""
        if not self._sums:
            return {}
        keys = list(self._sums)
        table = torch.stack([torch.stack([t, c.to(t.dtype)]) for t, c in self._sums.values()])
        self._sums = {}
        rows = reduce(table).tolist()
        return {key: total / count for key, (total, count) in zip(keys, rows, strict=True) if count}
