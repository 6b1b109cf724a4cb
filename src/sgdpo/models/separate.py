"""The general path: a packed row taken apart into padded sequences that a model's own forward reads.

For every architecture that `architectures.py` does not know to attend plainly. Each completion becomes a sequence with
its own prompt, padded on the right, where a causal model cannot look. Legend of the shape suffixes: `sgdpo/pairs.py`;
Q are sequences, T their padded length, S spans.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sgdpo.models.architectures import router_coefficient
from sgdpo.models.head import LogProbHead


class RowHead(LogProbHead):
    """A head that can answer a model's own forward with log-probs, where that expects logits.

    wanted: (places among the states of the batch, target_L), or None for logits. last: whether the model returns
    the head's output as it is; None until its first forward has shown it.
    """

    wanted: tuple[Tensor, Tensor] | None = None
    last: bool | None = None

    def forward(self, input: Tensor, target_L: Tensor | None = None) -> Any:
        if self.wanted is None:
            return super().forward(input, target_L)
        place_L, target_L = self.wanted
        found = super().forward(input.flatten(0, -2).index_select(0, place_L), target_L)
        self.answer = found
        return found[0] if self.features else found


def separate_logprobs(
    model: PreTrainedModel, plain_forward: Callable[..., Any], features: tuple[str, ...], target_L: Tensor,
    source_L: Tensor, span_S3: Tensor, input_ids: Tensor, **_: Tensor,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Return what a taught model returns (`logprobs.py`), by the model's own forward; keep its router loss."""
    ids_QT, mask_QT, slot_N = take_apart(input_ids[0], span_S3)
    coefficient, head = router_coefficient(model.config), model.get_output_embeddings()
    inputs = {"input_ids": ids_QT, "attention_mask": mask_QT, "use_cache": False, "return_dict": True}
    if coefficient:
        inputs["output_router_logits"] = True
    place_L = slot_N[source_L]
    if isinstance(head, RowHead) and head.last is not False:
        head.wanted = (place_L, target_L)
        try:
            output = plain_forward(model, **inputs)
            head.last = head.last or _same(output.logits, head.answer)
            # What went through the head's hooks (ZeRO-3 brings its weight back for the backward pass by them).
            answer = (output.logits, head.answer[1]) if features else output.logits
        finally:
            head.wanted, head.answer = None, None
    if not isinstance(head, RowHead) or not head.last:
        output = plain_forward(model, **inputs)
        answer = _of_logits(output.logits.flatten(0, 1)[place_L], target_L, features)
    balance = getattr(output, "aux_loss", None)
    model.router_loss = None if balance is None else coefficient * balance
    return answer


def take_apart(ids_N: Tensor, span_S3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sequences' ids and mask, Q x T, and the place of each of the row's tokens among Q * T."""
    sequences, own, start = [], [], 0
    for prefix, trunk, branch in span_S3.tolist():
        whole = torch.arange(start, start + trunk)
        sequences.append(whole)
        own.append(0)
        if branch:
            rest = torch.arange(start + trunk, start + trunk + branch)
            sequences.append(torch.cat([whole[:prefix], rest]))
            own.append(prefix)
        start += trunk + branch
    longest = max(map(len, sequences))
    slots = [
        torch.arange(first, len(sequence)) + index * longest
        for index, (first, sequence) in enumerate(zip(own, sequences, strict=True))
    ]
    token_QT = pad_sequence(sequences, batch_first=True)
    mask_QT = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True)
    device = ids_N.device
    return ids_N[token_QT.to(device)], mask_QT.to(device), torch.cat(slots).to(device)


def _same(logits: Tensor, answer: Tensor | tuple[Tensor, Any]) -> bool:
    logp_L = answer[0] if isinstance(answer, tuple) else answer
    return logits.shape == logp_L.shape and torch.equal(logits, logp_L)


def _of_logits(logits_LV: Tensor, target_L: Tensor, features: tuple[str, ...]) -> Any:
    """Return the log-probs of targets, and features as `head.py` defines them, from whole logits."""
    logp_LV = logits_LV.log_softmax(-1, dtype=torch.promote_types(logits_LV.dtype, torch.float32))
    picked_L = logp_LV.gather(-1, target_L[:, None])[:, 0]
    if not features:
        return picked_L
    wide_LV = logp_LV.detach()
    known = {
        "entropy": lambda: -(wide_LV.exp() * wide_LV).sum(-1),
        "log_p2": lambda: (2 * wide_LV).logsumexp(-1),
    }
    return picked_L, {name: known[name]() for name in features}
