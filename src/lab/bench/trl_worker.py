"""Measure TRL's DPOTrainer on given pairs, in an environment of its own; imports nothing of this project.

Run as a file: `python trl_worker.py SPEC PAIRS ANSWER`. The same model, pairs, order, precision and optimizer as
ours; rows are already token ids, so TRL's own tokenisation is left out of its time.
"""

import json
import resource
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from torch.utils.data import SequentialSampler


class TokenisedDPOTrainer(trl.DPOTrainer):
    """Take rows that are token ids already, in their order."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


class Clock(transformers.TrainerCallback):
    """Keep the seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *args, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)


def rows_of(path: Path) -> Dataset:
    """Read the pairs that `lab.bench.rounds.save` wrote."""
    with np.load(path) as file:
        lengths, flat = file["lengths"], file["flat"]
    pieces = [piece.tolist() for piece in np.split(flat, np.cumsum(lengths.flatten())[:-1])]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: pieces[side::3] for side, name in enumerate(names)})


def measure(spec: dict[str, Any], pairs: Path) -> dict[str, Any]:
    rows = rows_of(pairs).select(range(spec["batch"] * (spec["steps"] + 1)))
    cpu = spec["device"] == "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=spec["batch"],
            max_steps=spec["steps"] + 1,
            learning_rate=1e-7,
            beta=0.1,
            bf16=spec["precision"] == "bf16",
            use_cpu=cpu,
            precompute_ref_log_probs=spec["reference"] == "cached",
            gradient_checkpointing=spec["checkpointing"],
            max_length=None,
            optim="adamw_torch_fused",
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=not cpu,
            use_liger_kernel=not cpu and find_spec("liger_kernel") is not None,
        )
        clock = Clock()
        tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
        trainer = TokenisedDPOTrainer(
            model=model, args=settings, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]
        )
        trainer.train()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "seconds": clock.seconds[1:],
        "memory_mb": memory if cpu else torch.cuda.max_memory_allocated() / 2**20,
        "versions": {module.__name__: module.__version__ for module in (trl, transformers, torch)},
    }


if __name__ == "__main__":
    found = measure(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(found))
