"""Adapters (LoRA, DoRA, QLoRA) through peft: fit them to a model, keep them, find their base again and merge them.

The base is the run's start: the weights that the reference's log-probs were computed with, never the model that the
start came from. Its path and the hash of its weights stand beside the adapter, so that no other base is taken for it.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sgdpo.config.schema import AdapterConfig
from sgdpo.hub import first_line
from sgdpo.models.architectures import skeleton
from sgdpo.models.folder import BASE
from sgdpo.store import write_json

ALL = "all-linear"
SHOWN = 12


def adapter_errors(adapter: AdapterConfig, config: PreTrainedConfig) -> list[str]:
    """List what of an adapter does not fit a model: targets that match nothing or the head, and what peft refuses.

    Loads no weights.
    """
    if adapter.rank is None:
        return []
    model = skeleton(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    kinds = (nn.Linear, nn.Embedding, Conv1D)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    errors = []
    for target in adapter.targets if adapter.targets != [ALL] else []:
        matched = [module for name, module in linear.items() if f".{name}".endswith(f".{target}")]
        if any(module is head for module in matched):
            errors.append(
                f"adapter.targets: {target} is the lm-head, which the log-probs go through and which stays as it is;"
                " leave it out"
            )
        elif any(module is embedding for module in matched) and head.weight is embedding.weight:
            errors.append(
                f"adapter.targets: {target} is tied to the lm-head, which stays as it is; leave it out"
            )
        elif not matched:
            names = sorted({name.rpartition(".")[2] for name, module in linear.items() if module is not head})
            errors.append(
                f"adapter.targets: no layer of this model ({config.model_type}) is called {target}; there are"
                f" {', '.join(names[:SHOWN])}, or [{ALL}] for all of them"
            )
    return errors or _peft_errors(adapter, config)


def _peft_errors(adapter: AdapterConfig, config: PreTrainedConfig) -> list[str]:
    """Try it on a model without memory: peft knows architectures and layers that it does not fit."""
    try:
        trained_parameters(adapter, config)
    except ValueError as error:
        return [f"adapter={adapter.name} does not fit this model ({config.model_type}): {first_line(error)}"]
    return []


def trained_parameters(adapter: AdapterConfig, config: PreTrainedConfig) -> int:
    """Return how many parameters an adapter trains, counted on a model without memory.

    Raises peft's ValueError for an architecture or a layer that it does not fit.
    """
    from peft import get_peft_model

    with warnings.catch_warnings(action="ignore"):  # of what matters to those who train it
        fitted = get_peft_model(skeleton(config), _peft_config(adapter))
    return sum(p.numel() for p in fitted.parameters() if p.requires_grad)


def fit_adapter(model: PreTrainedModel, adapter: AdapterConfig, seed: int) -> Any:
    """Return the model as peft's: its weights frozen, an adapter that changes nothing yet, drawn from `seed`."""
    from peft import get_peft_model

    from sgdpo.models.low_rank import fuse_adapter

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fitted = get_peft_model(model, _peft_config(adapter))
    fuse_adapter(fitted)
    return fitted


class WithoutAdapter:
    """The model with its adapter switched off: a live reference that needs no second model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def to(self, device: torch.device) -> WithoutAdapter:
        """Stay where the model is."""
        return self

    def __call__(self, **row: Tensor) -> Tensor:
        whole = self._model.get_base_model()
        # A mixture's forward leaves its router's loss there, and the policy's is still to be read.
        of_policy = getattr(whole, "router_loss", None)
        with self._model.disable_adapter():
            output = self._model(**row)
        whole.router_loss = of_policy
        return output[0] if isinstance(output, tuple) else output


# ---- on the disk ------------------------------------------------------------------------------------------------


def write_base(folder: Path, base: Path | str, revision: str | None, weights: str) -> None:
    """Note beside an adapter what it was trained on. base: a folder or a hub id. weights: their hash."""
    beside = os.path.relpath(base, folder) if Path(base).is_dir() else None
    write_json(folder / BASE, {"path": str(base), "revision": revision, "beside": beside, "weights": weights})


def merged(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a base with an adapter merged into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def _peft_config(adapter: AdapterConfig) -> Any:
    from peft import LoraConfig  # a second of imports, for those who use it

    targets = ALL if adapter.targets == [ALL] else list(adapter.targets)
    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets,
        use_dora=adapter.dora, bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
