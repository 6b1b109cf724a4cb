"""The token ids of one example: what the data side hands to packing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """Hold the token ids of one preference pair, or of one SFT conversation.

    example_id: int64, stable over runs, shuffles and machines; keys the draws and the reference cache.
    prompt_ids, chosen_ids, rejected_ids: int32; the closing end-of-turn token is part of a completion.
        rejected_ids is empty in the SFT phase.
    chosen_mask: bool, which chosen tokens are trained; all True except in multi-turn SFT.
    """

    example_id: int
    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    chosen_mask: np.ndarray
