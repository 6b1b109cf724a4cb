"""TRL's DPOTrainer as an oracle: its loss of one batch, and the same log-probs as our Pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sgdpo.pairs import Pair
from toy_pairs import side

WORDS = ("<pad>", "<bos>", "<eos>", *"abcdefgh")
ROWS = [("a b c", " d e f g", " h a"), ("c d", " a", " b c d e"), ("e f g h", " a b", " c d")]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of eight letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def trl_loss(
    trl: Any, loss_type: str, beta: float, settings: dict[str, Any], folder: Path
) -> tuple[Pair, float]:
    """Return the batch as a Pair, and what DPOTrainer's compute_loss gives for it."""
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ROWS]
    arguments = trl.DPOConfig(
        output_dir=str(folder), loss_type=[loss_type], beta=beta, use_cpu=True, report_to=[], bf16=False,
        per_device_train_batch_size=len(ROWS), gradient_checkpointing=False, **settings,
    )  # fmt: skip
    policy, reference = model(1), model(2)
    trainer = trl.DPOTrainer(
        model=policy, ref_model=reference, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(policy, dict(batch)).item()
    return _pair(batch, policy, reference), theirs


def _pair(batch: dict[str, torch.Tensor], policy: LlamaForCausalLM, reference: LlamaForCausalLM) -> Pair:
    """Return the batch's completion log-probs, from plain forwards: TRL stacks the chosen rows on the rejected ones."""
    found = {}
    for name, net in (("policy", policy), ("reference", reference)):
        with torch.no_grad():
            logits = net(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].double()
        logp = torch.log_softmax(logits, -1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        found[name] = [
            row[keep.bool()].tolist() for row, keep in zip(logp, batch["completion_mask"][:, 1:], strict=True)
        ]
    half = len(ROWS)
    chosen = side(found["policy"][:half], found["reference"][:half])
    return Pair(chosen, side(found["policy"][half:], found["reference"][half:]), torch.arange(half))
