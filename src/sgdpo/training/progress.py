"""Show a run's progress: a bar on a terminal, ten lines in the log."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

LINES_A_RUN = 10
SHOWN = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"}


class Progress(TrainerCallback):
    """Show the steps done, the time left and the latest loss, margin and accuracy (rank 0)."""

    def __init__(self, title: str, say: Callable[[str], None], note: Callable[[str], None]) -> None:
        """say: puts a line on the screen and into the log. note: into the log alone, beside the bar."""
        self._title, self._say, self._note = title, say, note
        self._bar: tqdm | None = None
        self._latest = ""
        self._first, self._started, self._tenths = 0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first, self._started = state.global_step, time.monotonic()
        self._tenths = self._tenths_of(state)
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self._title,
                unit="step",
                dynamic_ncols=True,
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        found = {name: logs[key] for name, key in SHOWN.items() if key in (logs or {})}
        self._latest = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._latest, refresh=False)
            self._bar.update(state.global_step - self._bar.n)
        if state.is_world_process_zero and self._line_is_due(state):
            (self._say if self._bar is None else self._note)(self._line(state))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line_is_due(self, state: Any) -> bool:
        """Say whether another tenth of the run is done; at which steps rows come is trainer.log_steps' business."""
        before, self._tenths = self._tenths, self._tenths_of(state)
        return self._tenths > before

    def _tenths_of(self, state: Any) -> int:
        return LINES_A_RUN * state.global_step // state.max_steps

    def _line(self, state: Any) -> str:
        done = state.global_step - self._first
        left = (time.monotonic() - self._started) / max(done, 1) * (state.max_steps - state.global_step)
        return f"{self._title}  step {state.global_step}/{state.max_steps}  {self._latest}  {left:.0f} s left"
