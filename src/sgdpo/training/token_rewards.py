"""Find the reward of every token of a few held-out pairs, and which tokens the method drew, for people to look at."""

from typing import Any

import torch
from torch import Tensor

from sgdpo.data.example import Example
from sgdpo.pairs import Side
from sgdpo.training.trainer import PairTrainer

PAIRS_SHOWN = 6


def token_rewards(trainer: PairTrainer, examples: list[Example], tokenizer: Any) -> list[dict[str, Any]]:
    """Return [{"prompt", "chosen": [{"token", "reward", "pilot"}], "rejected": [...]}], a pair an example.

    A token's reward is its log-ratio on the scale of the side's reward, whatever the method calls that scale, so a
    side's tokens add up to its logged reward. Draws are those of evaluation, epoch 0's. A method that gives no
    rewards has none.
    """
    model = trainer.model.eval()
    device = next(model.parameters()).device
    row = {key: value.to(device) for key, value in trainer.data_collator(examples).items()}
    with torch.no_grad():
        pair, result = trainer.pair_loss(model, row, epoch=0)
    if result.chosen_reward_B is None or pair.rejected is None:
        return []
    sides = {
        "chosen": (pair.chosen, result.chosen_reward_B, result.taken.get("chosen")),
        "rejected": (pair.rejected, result.rejected_reward_B, result.taken.get("rejected")),
    }
    shown = []
    for index, example in enumerate(examples):
        tokens = {"prompt": tokenizer.decode(example.prompt_ids.tolist())}
        for (name, (side, reward_B, pilot_BT)), trained in zip(
            sides.items(), example.trained_ids, strict=True
        ):
            ids = trained.tolist()
            reward_T = _token_rewards(side, reward_B)[index].tolist()
            pilot_T = pilot_BT[index].tolist() if pilot_BT is not None else [False] * len(ids)
            tokens[name] = [
                {"token": tokenizer.decode([token]), "reward": round(reward, 5), "pilot": pilot}
                for token, reward, pilot in zip(ids, reward_T, pilot_T, strict=False)
            ]
        shown.append(tokens)
    return shown


def _token_rewards(side: Side, reward_B: Tensor) -> Tensor:
    """Share a side's reward out to its tokens, in proportion to their log-ratios. Shape BT."""
    scale_B = torch.where(side.ratio_B != 0, reward_B / side.ratio_B, torch.zeros_like(reward_B))
    return scale_B[:, None] * side.ratio_BT
