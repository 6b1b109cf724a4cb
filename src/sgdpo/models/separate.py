"""The general path: a packed row taken apart into padded sequences that a model's own forward reads.

For every architecture that `architectures.py` does not know to attend plainly. Each completion becomes a sequence with
its own prompt, padded on the right, where a causal model cannot look. Legend of the shape suffixes: `sgdpo/pairs.py`;
Q are sequences, T their padded length, S spans.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sgdpo.models.architectures import router_coefficient
from sgdpo.models.head import LogProbHead

# More than rounding to bf16 and the experts that it changes move a mean of log-probs by, nats.
APART = 0.2


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
    """Return what a taught model returns (`logprobs.py`), by the model's own forward; keep its router loss.

    Raise ValueError at the first row if a token's log-prob depends on what a causal model cannot see.
    """
    ids_QT, mask_QT, slot_N = take_apart(input_ids[0], span_S3)
    coefficient, place_L = router_coefficient(model.config), slot_N[source_L]
    routed = {"output_router_logits": True} if coefficient else {}
    forward = partial(plain_forward, model, use_cache=False, return_dict=True, **routed)
    answer, output = _answered(model, forward, features, ids_QT, mask_QT, place_L, target_L)
    if not getattr(model, "reads_left_to_right", False):
        again = partial(_answered, model, forward, ())
        with torch.no_grad():
            _check_alone(model, again, _logp(answer), ids_QT, mask_QT, place_L, target_L)
        model.reads_left_to_right = True
    balance = getattr(output, "aux_loss", None)
    model.router_loss = None if balance is None else coefficient * balance
    return answer


def _answered(
    model: PreTrainedModel, forward: Callable[..., Any], features: tuple[str, ...], ids_QT: Tensor,
    mask_QT: Tensor, place_L: Tensor, target_L: Tensor,
) -> tuple[Any, Any]:  # fmt: skip
    """Return the log-probs of targets, with features if there are any, and the model's whole output."""
    head, inputs = model.get_output_embeddings(), {"input_ids": ids_QT, "attention_mask": mask_QT}
    if isinstance(head, RowHead) and head.last is not False:
        head.wanted = (place_L, target_L)
        try:
            output = forward(**inputs)
            head.last = head.last or torch.equal(output.logits, _logp(head.answer))
            # What went through the head's hooks (ZeRO-3 brings its weight back for the backward pass by them).
            answer = (output.logits, head.answer[1]) if features else output.logits
        finally:
            head.wanted, head.answer = None, None
        if head.last:
            return answer, output
    output = forward(**inputs)
    return _of_logits(output.logits.flatten(0, 1)[place_L], target_L, features), output


def _check_alone(
    model: PreTrainedModel, again: Callable[..., Any], logp_L: Tensor, ids_QT: Tensor, mask_QT: Tensor,
    place_L: Tensor, target_L: Tensor,
) -> None:  # fmt: skip
    """Hold the row's shortest sequence against itself alone and without its last token."""
    sequence_L, length_Q = place_L // ids_QT.shape[1], mask_QT.sum(-1)
    shortest = int(sequence_L[length_Q[sequence_L].argmin()])
    mine_L, most = sequence_L == shortest, int(length_Q[shortest]) - 1
    ids_1T, place = ids_QT[shortest, None, :most], place_L[mine_L] - shortest * ids_QT.shape[1]
    alone_L = _logp(again(ids_1T, torch.ones_like(ids_1T), place, target_L[mine_L])[0])
    off = (alone_L - logp_L[mine_L]).abs().mean().item()
    if off > APART:
        raise ValueError(
            f"model type {model.config.model_type!r} gives a token another probability ({off:.2g} nats on average) "
            "when what follows it and the other texts of its batch are left out: it looks ahead, minds the padding or "
            "draws at random; take another causal model"
        )


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


def _logp(answer: Tensor | tuple[Tensor, Any]) -> Tensor:
    return answer[0] if isinstance(answer, tuple) else answer


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
