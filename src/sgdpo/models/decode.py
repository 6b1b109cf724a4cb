"""Continue rows of ids with transformers' generate: left padding, no setting but those that are given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


@torch.no_grad()
def continue_rows(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], longest: int, stops: Sequence[int], **more: Any
) -> list[list[int]]:
    """Return the new ids of each row, up to `longest`; the first of `stops` ends a row, and what follows is padding.

    more: passed to generate. Greedy: it draws nothing.
    """
    input_ids_BN, mask_BN = pad_left(rows, stops[0], model.device)
    config = GenerationConfig(
        max_new_tokens=longest,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
    )
    with plain_settings(model):
        out_BN = model.generate(
            input_ids=input_ids_BN, attention_mask=mask_BN, generation_config=config, **more
        )
    return out_BN[:, input_ids_BN.shape[1] :].tolist()


@contextmanager
def plain_settings(model: PreTrainedModel) -> Iterator[None]:
    """Lay a model's own generation settings (top-k, repetition penalty) aside: they would join those given, unasked."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def until_stop(new: Sequence[int], stops: Sequence[int]) -> tuple[list[int], bool]:
    """Return an answer's ids before the first stop, and whether there is one."""
    end = next((position for position, token in enumerate(new) if token in stops), None)
    return list(new[:end]), end is not None


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, int64, as wide as the longest row; the mask, not the pad id, says what is real."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
