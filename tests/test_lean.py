"""bfloat16 weights with a compensated optimizer go where float32 weights go; with plain AdamW they stand still."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgdpo.config.compose import compose_run
from sgdpo.runs.validate import config_errors
from sgdpo.training.arguments import compensated_adamw
from tiny_training import random_examples, taught_model, tiny_config, tiny_trainer, weights

STEPS = 12


def moved(folder: Path, precision: str, **optimizer: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Train from weights that bfloat16 can hold; return where the weights began and where they ended."""
    config = tiny_config(
        "method=dpo", f"precision={precision}", "optimizer.lr=2e-5", "optimizer.warmup_ratio=0"
    )
    model = taught_model(config).to(torch.bfloat16)
    model = model if config.precision.lean else model.float()
    with torch.autocast("cpu", torch.bfloat16):  # the reference's pass
        trainer = tiny_trainer(
            config, folder, steps=STEPS, examples=random_examples(8), model=model, **optimizer
        )
    before = weights(trainer).float()
    trainer.train()
    return before, weights(trainer).float()


def test_compensated_bf16_weights_follow_float32_ones_and_plain_ones_do_not(tmp_path: Path) -> None:
    adamw = {"lr": 2e-5, "weight_decay": 0.0}
    start, exact = moved(tmp_path / "float32", "bf16")
    config = tiny_config("precision=lean", "optimizer.lr=2e-5")
    _, lean = moved(tmp_path / "lean", "lean", optimizer_cls_and_kwargs=compensated_adamw(config))
    _, plain = moved(tmp_path / "plain", "lean", optimizer_cls_and_kwargs=(torch.optim.AdamW, adamw))
    way = (exact - start).norm()
    assert (plain - exact).norm() > 0.7 * way, "most updates are smaller than half a step of bfloat16"
    assert (lean - exact).norm() < 0.5 * (plain - exact).norm()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["precision=lean", "engine=zero3"], "precision=lean does not work with engine=zero3"),
        (["precision=lean", "engine=fsdp"], "precision=lean does not work with engine=fsdp"),
        (["precision=lean8"], "precision=lean8 needs the package torchao"),
    ],
)
def test_what_lean_cannot_do_is_named(changes: list[str], words: str) -> None:
    assert words in "\n".join(config_errors(compose_run(["device=cpu", *changes])))
