"""Turn the typed config into transformers' TrainingArguments, with the traps of its defaults closed."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from sgdpo.config.metrics import lower_is_better
from sgdpo.config.schema import RunConfig, TrainerConfig
from sgdpo.decimals import ceil_product

# Evaluations and checkpoints of a run when the config leaves their interval at 0.
EVALS_A_RUN, SAVES_A_RUN = 10, 5


def total_steps(config: RunConfig, examples: int) -> int:
    """Return the optimizer steps of a run over so many examples; a remainder below a batch is left out.

    Raise ValueError if there are too few for a step.
    """
    optimizer = config.optimizer
    if examples < optimizer.batch_size:
        raise ValueError(
            f"{examples} training examples are left but a step takes {optimizer.batch_size}; set "
            f"{phase_key(config.method['phase'], 'batch_size')} to at most {examples}, or bring more data"
        )
    if optimizer.max_steps > 0:
        return optimizer.max_steps
    return ceil_product(examples // optimizer.batch_size, optimizer.epochs)


def phase_key(phase: str, key: str) -> str:
    """Name a setting of the optimizer for whoever is to change it: a run's SFT start has its own, which the run's
    does not reach.
    """
    return f"optimizer.{key}" + (
        f" (optimizer.sft.{key} if this is another run's start)" if phase == "sft" else ""
    )


def higher_is_better(trainer: TrainerConfig) -> bool:
    """Tell whether the larger value of `trainer.best` is the better one."""
    if trainer.better == "auto":
        return not lower_is_better(trainer.best or "")
    return trainer.better == "higher"


def on_gpu(config: RunConfig) -> bool:
    """Say whether a run computes on CUDA devices; of the other accelerators, which accelerate would take, none is."""
    return config.device != "cpu" and torch.cuda.is_available()


# Our samplers deal the rows to the ranks.
OWN_ROWS = {"split_batches": False, "dispatch_batches": False, "even_batches": False}


def training_arguments(
    config: RunConfig, folder: Path, steps: int, rows: int, evaluates: bool
) -> TrainingArguments:
    """Return the Trainer's arguments for a run of `steps` steps, `rows` rows a step and rank."""
    optimizer, trainer = config.optimizer, config.trainer
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=rows,
        learning_rate=optimizer.lr,
        lr_scheduler_type=optimizer.schedule,
        # A warm-up begins at 0: one that took all steps would never reach its peak, and train nothing if there is one.
        warmup_steps=min(ceil_product(steps, optimizer.warmup_ratio), steps - 1),
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=optimizer.max_grad_norm,
        optim=_optimizer_name(config),
        optim_args=config.precision.facts.optimizer_args,
        bf16=config.precision.bf16 and not config.engine.sharded,
        use_cpu=not on_gpu(config),
        deepspeed=_deepspeed(config),
        fsdp=bool(config.engine.fsdp),
        fsdp_config=deepcopy(config.engine.fsdp),
        ddp_timeout=int(config.engine.timeout_minutes * 60),
        ddp_find_unused_parameters=False,
        seed=config.seed,
        data_seed=config.seed,
        dataloader_num_workers=trainer.workers,
        accelerator_config={
            **OWN_ROWS,
            "non_blocking": on_gpu(config),
            # FSDP2 would keep whole gradients until a step's last row.
            "gradient_accumulation_kwargs": {"sync_each_batch": bool(config.engine.fsdp)},
        },
        remove_unused_columns=False,
        logging_steps=trainer.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=min(trainer.eval_steps or max(steps // EVALS_A_RUN, 1), steps),
        save_strategy="steps",
        save_steps=trainer.save_steps or max(steps // SAVES_A_RUN, 1),
        # The name under which the trainer gives it, whichever it is.
        metric_for_best_model=trainer.best and "best",
        greater_is_better=higher_is_better(trainer),
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    # One process drives one GPU: with more in sight the Trainer would cut every row over them (DataParallel).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _optimizer_name(config: RunConfig) -> str:
    """Return transformers' name of the optimizer; a compensated one is handed to the trainer (`compensated_adamw`)."""
    plain = "adamw_torch" if config.engine.deepspeed else "adamw_torch_fused"
    return config.precision.facts.optimizer or plain


def compensated_adamw(config: RunConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return AdamW for bfloat16 weights, which carries what rounding took from an update into the next one.

    Most updates are smaller than half a step of a bfloat16 weight: without that they would all be lost.
    """
    from optimi import AdamW

    optimizer = config.optimizer
    return AdamW, {"lr": optimizer.lr, "betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.eps}


def _deepspeed(config: RunConfig) -> dict[str, Any] | None:
    """Return DeepSpeed's settings with the run's precision: autocast over float32 weights, as without it.

    DeepSpeed's own bf16 rounds the weights themselves, so that step 0 differs from the reference's pass.
    """
    if not config.engine.deepspeed:
        return None
    autocast = {"enabled": config.precision.bf16, "dtype": "bfloat16"}
    return {**deepcopy(config.engine.deepspeed), "torch_autocast": autocast}
