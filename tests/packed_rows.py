"""What the tests of models, packing and the reference share: examples, tiny models, plain log-probs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from sgdpo.config.schema import ModelConfig
from sgdpo.data.example import Example
from sgdpo.models.load import load_model

CONF = Path(__file__).resolve().parents[1] / "conf" / "model"


def model_config(name: str = "tiny_llama", **tiny: object) -> ModelConfig:
    """Return a model option of conf/, with some keys of `tiny` replaced."""
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    values.pop("defaults")
    config = ModelConfig(**values)
    config.tiny = {**config.tiny, "num_hidden_layers": 2, "hidden_size": 64, **tiny}
    return config


def tiny_model(name: str = "tiny_llama", dtype: torch.dtype = torch.float32, **tiny: object):
    """Return a random tiny model with weights large enough that attention is far from uniform."""
    model = load_model(model_config(name, **tiny), seed=1, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def make_examples(lengths: list[tuple[int, int, int]], seed: int = 0, vocabulary: int = 100) -> list[Example]:
    """Return examples of the given (prompt, chosen, rejected) lengths, with random ids."""
    draw = np.random.default_rng(seed)
    made = []
    for index, (prompt, chosen, rejected) in enumerate(lengths):
        ids = [draw.integers(6, vocabulary, count, dtype=np.int32) for count in (prompt, chosen, rejected)]
        made.append(Example(1000 + 7 * index, *ids, np.ones(chosen, bool)))
    return made


class ExampleList:
    """Examples in memory with the attributes that `data/prepare.py` gives its sets."""

    def __init__(self, examples: list[Example], fingerprint: str = "toy") -> None:
        self.examples, self.fingerprint = examples, fingerprint
        self.ids = np.array([e.example_id for e in examples], np.int64)
        self.lengths = np.array(
            [[len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)] for e in examples]
        )
        self.trained = np.array([[len(ids) for ids in e.trained_ids] for e in examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def plain_logprobs(model: PreTrainedModel, prompt: np.ndarray, completion: np.ndarray) -> Tensor:
    """Return per-token log-probs of one completion by a plain forward and a dense softmax: the oracle."""
    ids_1N = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    logits_NV = model(input_ids=ids_1N).logits[0]
    predicted_LV = logits_NV[len(prompt) - 1 : -1].log_softmax(-1)
    return predicted_LV.gather(-1, ids_1N[0, len(prompt) :, None])[:, 0]
