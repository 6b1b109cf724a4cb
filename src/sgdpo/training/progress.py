"""Show a run's progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

LINES_A_RUN = 10


class Progress(TrainerCallback):
    """Draw the steps done, the time left and the latest loss and rewards."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        on_screen = sys.stderr.isatty()
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._title,
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr if on_screen else sys.stdout,
            # In a log file a bar is noise: one line for a tenth of the run.
            mininterval=0.1 if on_screen else float("inf"),
            miniters=1 if on_screen else max(state.max_steps // LINES_A_RUN, 1),
            ascii=not on_screen,
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if self._bar is None or not logs:
            return
        shown = {
            "loss": logs.get("loss"),
            "margin": logs.get("rewards/margins"),
            "acc": logs.get("rewards/accuracies"),
        }
        self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if v is not None}, refresh=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is None:
            return
        if sys.stderr.isatty():
            self._bar.update(1)
            return
        self._bar.n = state.global_step
        if state.global_step % self._bar.miniters == 0 or state.global_step == state.max_steps:
            print(str(self._bar), flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
