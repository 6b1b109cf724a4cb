"""Watch answers change: at every evaluation the policy answers a fixed set of held-out prompts.

Greedily: an answer changes because the policy did, and nothing is drawn, so that training goes on as it would without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sgdpo.data.conversation import stop_ids
from sgdpo.data.example import Example
from sgdpo.models.decode import continue_rows, until_stop
from sgdpo.overlap import repetition

REPEATED = 4  # tokens that count as a repetition when they come again in their order
MEANS = {"length": "tokens", "end_rate": "ended", "repetition_rate": "repetition"}
SCORED = {**MEANS, "score": "score"}  # where a benchmark is asked


@dataclass(frozen=True)
class Samples:
    """Hold the prompts, ids as training has them, and the length at which an answer is cut, tokens.

    scores: scores the answers to all prompts, texts in their order; None: nobody does.
    """

    prompts: Sequence[tuple[int, ...]]
    tokenizer: PreTrainedTokenizerBase
    longest: int
    scores: Callable[[Sequence[str]], Sequence[float]] | None = None

    @classmethod
    def of(
        cls, held_out: Iterable[Example], tokenizer: PreTrainedTokenizerBase, count: int, longest: int
    ) -> Samples:
        """Take the first different prompts of the held-out set."""
        found: dict[tuple[int, ...], None] = {}
        for example in held_out:
            if len(found) == count:
                break
            found[tuple(example.prompt_ids.tolist())] = None
        return cls(list(found), tokenizer, longest)

    def answer(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Return each prompt's answer, its length in tokens, whether it ended and how much of it is repetition.

        Every rank calls it and answers its share; one without a share answers with the others, as a model that is
        partitioned over the ranks needs all of them in each pass.
        """
        state, stops = PartialState(), stop_ids(self.tokenizer)
        share = range(state.process_index, len(self.prompts), state.num_processes) or range(1)
        context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        longest = min(self.longest, context - max(map(len, self.prompts)))
        # Of FSDP2 by accelerate transformers' generate does not know: a rank that is done must go on with the others.
        synced = isinstance(model, FSDPModule) or None
        prompts = [self.prompts[index] for index in share]
        new = continue_rows(model, prompts, max(longest, 1), stops, synced_gpus=synced)
        rows = [self._row(index, *until_stop(ids, stops)) for index, ids in zip(share, new, strict=True)]
        by_number = {row["number"]: row for row in gather_object(rows)}
        rows = [by_number[number] for number in range(len(self.prompts))]
        scores = self.scores([row["response"] for row in rows]) if self.scores else []
        return [{**row, "score": score} for row, score in zip(rows, scores, strict=True)] if scores else rows

    def _row(self, number: int, ids: list[int], ended: bool) -> dict[str, Any]:
        prompt, response = (
            self.tokenizer.decode(part, skip_special_tokens=True) for part in (self.prompts[number], ids)
        )
        facts = {"tokens": len(ids), "ended": ended, "repetition": repetition(ids, REPEATED)}
        return {"number": number, "prompt": prompt, "response": response, **facts}


def sample_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of a set of answers: mean tokens, share that ended, mean share of repetition, mean score."""
    return {name: sum(row[key] for row in rows) / len(rows) for name, key in SCORED.items() if key in rows[0]}
