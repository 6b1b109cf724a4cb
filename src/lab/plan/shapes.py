"""A model's shape from its config alone: parameters, the largest layer, the widths that memory depends on.

A model's YAML may hold the facts of its config.json (`facts`), so that a plan needs no network; any other model's
config is read from its folder or, if it must be, the hub.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from sgdpo.config.schema import ModelConfig
from sgdpo.models.load import load_config


@dataclass(frozen=True)
class ModelShape:
    """Hold what a plan needs of a model.

    hidden, intermediate: widths of the residual stream and the MLP. attention, key_value: widths of all query
    heads and of all key heads together.
    parameters: all, tied ones once. head: of the lm-head's matrix. embedding: of the input embedding that is
    only looked up (0 if tied: then it is the head's matrix). largest: of the largest module, which ZeRO-3
    gathers whole.
    """

    layers: int
    hidden: int
    intermediate: int
    attention: int
    key_value: int
    vocabulary: int
    parameters: int
    head: int
    embedding: int
    largest: int
    tied: bool

    @property
    def body(self) -> int:
        """Return the parameters that every token multiplies: all but the embedding and the lm-head."""
        return self.parameters - self.head - self.embedding


def model_shape(model: ModelConfig) -> ModelShape:
    """Return the shape of a run's model; only a config is read, and none if its YAML holds the facts."""
    return shape_of(AutoConfig.for_model(**model.facts) if model.facts else load_config(model))


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Return the shape of an architecture, counted on a model without memory (torch's meta device)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    modules = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    return ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        attention=config.num_attention_heads * width,
        key_value=config.num_key_value_heads * width,
        vocabulary=config.vocab_size,
        parameters=sum(p.numel() for p in model.parameters()),
        head=head.numel(),
        embedding=0 if tied else model.get_input_embeddings().weight.numel(),
        largest=max(modules),
        tied=tied,
    )
