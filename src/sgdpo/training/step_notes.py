"""What a step is remembered by until it ends: which pairs, their losses and rewards; and its end."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from sgdpo.pairs import PairLoss

MAX_IDS_SHOWN = 8


class StepNotes:
    """Remember the current step's losses, pair ids and what the state asked for, on the device, until the step ends."""

    def __init__(self) -> None:
        self.clear()

    def add(self, example_id_B: Tensor, result: PairLoss) -> None:
        self._ids.append(example_id_B)
        self._losses.append(result.loss_B.detach())
        for name, values in result.sums.items():
            self._wanted.setdefault(name, []).append(values)

    def clear(self) -> None:
        self._ids: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._wanted: dict[str, list[Tensor]] = {}
        self.skipped = False

    def sums(self, device: torch.device) -> tuple[list[str], Tensor]:
        """Return the names of what the state asked for, and the sum and count of each, float64, shape (names, 2)."""
        sums = torch.zeros(len(self._wanted), 2, dtype=torch.float64, device=device)
        for row, values in zip(sums, self._wanted.values(), strict=True):
            flat = torch.cat(values).double()
            row[0], row[1] = flat.sum(), flat.numel()
        return list(self._wanted), sums

    def suspects(self) -> str:
        """Name the pairs whose loss is not finite, over all ranks; or all of the step's if the loss does not tell.

        A collective: every rank calls it, as every rank has the step's gradient norm.
        """
        finite = torch.isfinite(torch.cat(self._losses)).tolist()
        pairs = gather_object(list(zip(torch.cat(self._ids).tolist(), finite, strict=True)))
        named = [pair for pair, is_finite in pairs if not is_finite] or [pair for pair, _ in pairs]
        more = f" and {len(named) - MAX_IDS_SHOWN} more" if len(named) > MAX_IDS_SHOWN else ""
        return ", ".join(map(str, named[:MAX_IDS_SHOWN])) + more


class StepEnd(TrainerCallback):
    """Say when a step has ended, before it is logged; the last one is logged whatever the interval."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell()
        control.should_log |= state.global_step >= state.max_steps
