"""The trainer's loss, metrics and state do not depend on how a step is cut; bad steps stop it."""

import gc
import math
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import TrainerState

from marks import proofs_but
from sgdpo.places import CONF
from sgdpo.training.progress import Progress
from sgdpo.training.trainer import NonFiniteError
from tiny_training import random_examples, reference_of, taught_model, tiny_config, tiny_trainer, weights


@pytest.mark.parametrize("method", proofs_but(("sft", "sgdpo", "bco", "ipo"), "sgdpo", "bco"))
def test_a_step_of_8_is_the_same_in_1_2_4_or_8_rows(method: str, tmp_path: Path) -> None:
    """Accumulation must neither divide the loss twice nor once too few: losses, gradients, next weights."""
    config = tiny_config(f"method={method}", "experiment=x")
    runs = {}
    for rows in (1, 2, 4, 8):
        trainer = tiny_trainer(config, tmp_path / str(rows), rows=rows)
        trainer.train()
        runs[rows] = (trainer.rows_written, weights(trainer))
    for rows in (2, 4, 8):
        for whole, cut in zip(runs[1][0], runs[rows][0], strict=True):
            # At step 0 both rewards are 0 but for rounding, so which is larger says nothing.
            for key in whole.keys() - {
                "split",
                "pairs_per_second",
                "tokens_per_second",
                "rewards/accuracies",
            }:
                assert cut[key] == pytest.approx(whole[key], rel=1e-4, abs=1e-5), (rows, key)
        torch.testing.assert_close(runs[rows][1], runs[1][1], atol=1e-5, rtol=0)


def test_the_first_dpo_step_starts_at_ln_2_and_the_margin_then_grows(tmp_path: Path) -> None:
    """The same 8 pairs at every step, so that losses compare."""
    trainer = tiny_trainer(tiny_config("method=dpo"), tmp_path, examples=random_examples(8))
    trainer.train()
    first, *_, last = trainer.rows_written
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize(
    ("steps", "rates"), [(1, [1]), (4, [0, *((1 + math.cos(math.pi * step / 3)) / 2 for step in range(3))])]
)
def test_rates_are_the_schedules_and_reach_their_peak_however_few_the_steps(
    steps: int, rates: list[float], tmp_path: Path
) -> None:
    """A warm-up of one step and a cosine; of a single step both would be a rate of 0."""
    config = tiny_config("method=sft")
    trainer = tiny_trainer(config, tmp_path, steps=steps)
    before = weights(trainer)
    trainer.train()
    found = [row["learning_rate"] / config.optimizer.lr for row in trainer.rows_written]
    assert found == pytest.approx(rates)
    assert not torch.equal(weights(trainer), before)


def test_sgdpo_moves_the_weights_half_as_far_as_dpo_when_pilots_are_whole(tmp_path: Path) -> None:
    """r1 = r2 = 1 and equal lengths: DPO's value and exactly half its gradient (identity 2 of the objectives)."""
    random = np.random.default_rng(3)
    examples = [
        type(e)(e.example_id, e.prompt_ids, e.chosen_ids,
                random.integers(5, 60, len(e.chosen_ids)).astype(np.int32), e.chosen_mask)
        for e in random_examples(8)
    ]  # fmt: skip
    norms = {}
    for name, more in (("dpo", []), ("sgdpo", ["ratio=full"])):
        config = tiny_config(f"method={name}", *more)
        trainer = tiny_trainer(config, tmp_path / name, steps=1, examples=examples)
        trainer.train()
        norms[name] = trainer.rows_written[0]["grad_norm"]
    assert norms["sgdpo"] == pytest.approx(norms["dpo"] / 2, rel=1e-5)


def test_an_epoch_draws_other_pilots_and_evaluation_always_epoch_0s(tmp_path: Path) -> None:
    """With a learning rate of nearly 0 only the draws change the pilots' sizes-by-value between epochs."""
    config = tiny_config(
        "method=sgdpo", "optimizer.lr=1e-12", "method.draw=independent", "trainer.step0_check=false"
    )
    trainer = tiny_trainer(config, tmp_path, steps=6)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    pilots = [row["pilot/chosen"] for row in trainer.rows_written if row["split"] == "train"]
    assert pilots[0] != pytest.approx(pilots[3], abs=1e-4)
    assert after["eval_pilot/chosen"] == pytest.approx(before["eval_pilot/chosen"], abs=1e-6)


def test_metrics_are_sums_over_pairs_not_means_of_row_means(tmp_path: Path) -> None:
    """Rows of 3 and 1 examples: the mean chosen length is over 4 examples."""
    examples = random_examples(8)
    trainer = tiny_trainer(tiny_config("method=dpo"), tmp_path, rows=3, steps=1, examples=examples)
    trainer.train()
    expected = sum(len(e.chosen_ids) for e in examples) / 8
    assert trainer.rows_written[0]["lengths/chosen"] == pytest.approx(expected)


def test_a_live_reference_gives_the_cached_ones_curve(tmp_path: Path) -> None:
    config = tiny_config("method=sgdpo")
    cached = tiny_trainer(config, tmp_path / "cached")
    live = tiny_trainer(config, tmp_path / "live", live_reference=taught_model(config).requires_grad_(False))
    live.data_collator.references = None
    for trainer in (cached, live):
        trainer.train()
    for a, b in zip(cached.rows_written, live.rows_written, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["rewards/chosen"] == pytest.approx(b["rewards/chosen"], abs=1e-5)


def test_another_models_reference_is_refused_at_step_0(tmp_path: Path) -> None:
    config, examples = tiny_config("method=dpo"), random_examples(24)
    stranger = taught_model(tiny_config("method=dpo", "seed=7"))
    trainer = tiny_trainer(config, tmp_path, examples=examples, reference=reference_of(stranger, examples))
    with pytest.raises(ValueError, match="the policy is not the reference at step 0"):
        trainer.train()


def test_bcos_shift_is_the_mean_over_past_steps_of_the_global_batch(tmp_path: Path) -> None:
    """delta before step 4 is the mean of the mean rewards of steps 1 to 3."""
    trainer = tiny_trainer(tiny_config("method=bco"), tmp_path, rows=4)
    trainer.train()
    means = [(row["rewards/chosen"] + row["rewards/rejected"]) / 2 for row in trainer.rows_written]
    assert trainer.method_state.delta == pytest.approx(np.mean(means), rel=1e-5)


def poison(trainer) -> None:
    """Make one step's loss NaN by the reference log-probs of pair 1000."""
    lookup = trainer.data_collator.references

    def poisoned(example_id: int):
        chosen, rejected = lookup(example_id)
        return (chosen * np.nan, rejected) if example_id == 1000 else (chosen, rejected)

    trainer.data_collator.references = poisoned


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_pair(tmp_path: Path) -> None:
    config = tiny_config("method=dpo", "trainer.step0_check=false")
    trainer = tiny_trainer(config, tmp_path)
    poison(trainer)
    with pytest.raises(NonFiniteError, match=r"(?s)step \d+: .*pairs 1000;.*last good checkpoint"):
        trainer.train()


def test_a_step_that_is_not_finite_can_be_skipped_and_is_counted(tmp_path: Path) -> None:
    config = tiny_config("method=dpo", "trainer.step0_check=false", "trainer.on_nonfinite=skip")
    trainer = tiny_trainer(config, tmp_path)
    poison(trainer)
    trainer.train()
    assert trainer.skipped_steps == 1
    assert torch.isfinite(weights(trainer)).all()


STATEFUL = [
    path.stem for path in sorted((CONF / "method").glob("*.yaml")) if "state: sgdpo." in path.read_text()
]


@pytest.mark.parametrize("method", STATEFUL)
def test_a_skipped_step_leaves_the_methods_state_as_it_was(tmp_path: Path, method: str) -> None:
    config = tiny_config(
        f"method={method}", "trainer.step0_check=false", "trainer.on_nonfinite=skip", "trainer.save_steps=6"
    )
    trainer = tiny_trainer(config, tmp_path, steps=6)
    poison(trainer)
    trainer.train()
    assert trainer.skipped_steps == 2, "one of each epoch"
    assert all(math.isfinite(value) for value in trainer.method_state.state_dict().values())


@pytest.mark.parametrize("every", [1, 4, 50])
def test_every_step_is_in_a_row_whatever_the_interval(tmp_path: Path, every: int) -> None:
    config = tiny_config("method=dpo", f"trainer.log_steps={every}", "trainer.save_steps=6")
    trainer = tiny_trainer(config, tmp_path, steps=6)
    trainer.train()
    assert [row["step"] for row in trainer.rows_written] == sorted({1, *range(every, 7, every), 6})


def test_a_log_has_ten_lines_of_progress_whatever_the_interval() -> None:
    """Lines came at steps that both ten and the interval divide: one in a thousand steps."""
    for every, steps in ((1, 16), (7, 1000), (10, 250), (1, 4)):
        lines: list[str] = []
        progress, state = Progress("run", lines.append, lines.append), TrainerState(max_steps=steps)
        progress.on_train_begin(None, state, None)
        for state.global_step in (step for step in range(1, steps + 1) if step % every == 0 or step == steps):
            progress.on_log(None, state, None)
        assert len(lines) == min(10, steps)
        assert f"step {steps}/{steps}" in lines[-1]


def test_the_speed_is_of_training_alone(tmp_path: Path) -> None:
    """Not of a checkpoint that takes long to write: sweeps and the screen tell the time that is left by it."""
    config = tiny_config("method=dpo", "trainer.save_steps=1")
    trainer = tiny_trainer(config, tmp_path, steps=2, mark=lambda: time.sleep(1) or {})
    trainer.train()
    assert trainer.rows_written[-1]["pairs_per_second"] > 8, "a step has 8 pairs, and none takes a second"


@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_each_row_is_a_sign_of_life(tmp_path: Path, work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of many rows, or a long evaluation, is not to be taken for hanging."""
    signs: list[int] = []
    monkeypatch.setattr("sgdpo.training.trainer.beat", lambda: signs.append(1))
    trainer = tiny_trainer(tiny_config("method=dpo", "trainer.save_steps=9"), tmp_path, rows=4, steps=1)
    getattr(trainer, work)()
    assert len(signs) >= (4 if work == "train" else len(trainer.get_eval_dataloader()))


def test_an_evaluation_leaves_no_worker_process_and_no_loader_behind(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config("method=dpo", "trainer.workers=1"), tmp_path)
    before, kept = psutil.Process().children(), []
    for _ in range(2):
        trainer.evaluate()
        gc.collect()
        kept.append((psutil.Process().children(), len(trainer.accelerator._dataloaders)))
    assert kept == [(before, 1)] * 2


def test_an_attempt_that_goes_on_knows_what_was_logged_and_skipped_before_it(tmp_path: Path) -> None:
    """No step of its own is logged before its first evaluation, which is judged by the training's loss."""
    config = tiny_config(
        "method=dpo", "trainer.step0_check=false", "trainer.on_nonfinite=skip", "trainer.log_steps=7",
        "trainer.save_steps=3", "trainer.best=train/loss",
    )  # fmt: skip
    first, second = (tiny_trainer(config, tmp_path, steps=4) for _ in range(2))
    poison(first)
    first.train()
    second.resume_states(tmp_path / "checkpoints" / "checkpoint-3")
    assert second.skipped_steps == 1, "the pair comes once in the epoch of three steps"
    assert second.evaluate()["eval_best"] == first.rows_written[0]["loss"]
