"""Write the reward of every token of a few held-out pairs, and which tokens the pilot took, for people to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgdpo.data.example import Example
from sgdpo.data.packing import model_inputs, pair_of
from sgdpo.method import Method
from sgdpo.pairs import DrawKey, Pair, Side
from sgdpo.pilot import CHOSEN, REJECTED, draw_subset, pilot_size

PAIRS_SHOWN = 6


def write_token_rewards(
    path: Path,
    model: torch.nn.Module,
    examples: list[Example],
    collator: Callable[[list[Example]], dict[str, Tensor]],
    method: Method,
    tokenizer: Any,
    seed: int,
    reference: torch.nn.Module | None = None,
) -> None:
    """Write {"pairs": [{"prompt", "chosen": [{"token", "reward", "pilot"}], "rejected": [...]}]}.

    A token's reward is beta times its log-ratio, so a side's tokens add up to its logged reward. Pilots are
    those of evaluation, epoch 0's draw.
    """
    device = next(model.parameters()).device
    row = {key: value.to(device) for key, value in collator(examples).items()}
    model.eval()
    with torch.no_grad():
        reference_L = reference(**model_inputs(row)) if reference is not None else None
        pair = pair_of(row, model(**model_inputs(row)), reference_L)
    pilots = _pilots(pair, method, DrawKey(seed))
    beta = method.hyper["beta"]
    shown = [
        {
            "prompt": tokenizer.decode(example.prompt_ids.tolist()),
            "chosen": _tokens(example.chosen_ids, pair.chosen, pilots[0], beta, index, tokenizer),
            "rejected": _tokens(example.rejected_ids, pair.rejected, pilots[1], beta, index, tokenizer),
        }
        for index, example in enumerate(examples)
    ]
    path.write_text(json.dumps({"pairs": shown}, ensure_ascii=False))


def _pilots(pair: Pair, method: Method, draws: DrawKey) -> tuple[Tensor | None, Tensor | None]:
    if method.ratios is None:
        return None, None
    shorter_B = torch.minimum(pair.chosen.length_B, pair.rejected.length_B)
    drawn = [
        draw_subset(part.mask_BT, pilot_size(shorter_B, ratio), pair.example_id_B, side, draws)
        for part, ratio, side in (
            (pair.chosen, method.ratios.chosen, CHOSEN),
            (pair.rejected, method.ratios.rejected, REJECTED),
        )
    ]
    return drawn[0], drawn[1]


def _tokens(
    ids: Any, side: Side, pilot_BT: Tensor | None, beta: float, index: int, tokenizer: Any
) -> list[dict[str, Any]]:
    reward_T = (beta * side.ratio_BT[index]).tolist()
    pilot_T = pilot_BT[index].tolist() if pilot_BT is not None else [False] * len(reward_T)
    return [
        {"token": tokenizer.decode([token]), "reward": round(reward, 5), "pilot": drawn}
        for token, reward, drawn in zip(ids.tolist(), reward_T, pilot_T, strict=False)
    ]
