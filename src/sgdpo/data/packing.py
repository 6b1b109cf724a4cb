"""Pack examples into one row of tokens without padding, and read per-token log-probs back as a Pair.

Layout `shared_prefix`: each pair is [prompt | chosen | rejected]; the rejected completion's positions restart
after the prompt, and attention hides the chosen tokens from it. Layout `separate`: [prompt | chosen] and
[prompt | rejected] are two sequences. Legend of the shape suffixes: `sgdpo/pairs.py`; S counts the spans of
a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdpo.data.example import Example
from sgdpo.pairs import Pair, Side

MODEL_KEYS = ("input_ids", "position_ids", "span_S3", "source_L", "target_L")

ModelOutput = Tensor | tuple[Tensor, dict[str, Tensor]]
Lookup = Callable[[int], tuple[np.ndarray, np.ndarray]]


class RowCollator:
    """Make one packed row of a list of examples: the collate function of a DataLoader.

    layout: `shared_prefix` or `separate`.
    references: per-token reference log-probs by example id (`ReferenceTable.lookup`); None leaves them out.
    scores: give the data's scores of the answers too.

    A row holds, all int64 but where said otherwise:
        input_ids, position_ids (1, N)   the tokens, and their positions, which restart with every sequence
        span_S3                          (prefix, trunk, branch) lengths of each span: `trunk` tokens attend
                                         causally, `branch` tokens to the first `prefix` ones and causally
                                         among themselves
        source_L, target_L               index of the hidden state that predicts each trained completion
                                         token, and that token's id: all chosen ones first, then all rejected
        chosen_at, rejected_at           where these go in a flat (B * T)
        chosen_mask_BT, rejected_mask_BT bool
        reference_L                      float32, only with references
        example_id_B, count_pairs, count_tokens (trained chosen tokens; scalars; both float64 sums of weights where
        the examples have weights)
        score_w_B, score_l_B, weight_B   float32, where asked for, and where the examples have weights
    """

    def __init__(self, layout: str, references: Lookup | None = None, *, scores: bool = False) -> None:
        self.layout, self.references, self.scores = layout, references, scores

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        tokens, positions, spans, chosen, rejected = [], [], [], [], []
        start = 0
        for example in examples:
            piece = _place(example, self.layout)
            tokens += piece["tokens"]
            positions += piece["positions"]
            spans += piece["spans"]
            chosen.append(piece["chosen_source"] + start)
            rejected.append(piece["rejected_source"] + start)
            start += sum(map(len, piece["tokens"]))
        row = {
            "input_ids": _int64(tokens)[None],
            "position_ids": _int64(positions)[None],
            "span_S3": torch.tensor(spans),
            "source_L": _int64(chosen + rejected),
            "target_L": _int64([e.trained_ids[0] for e in examples] + [e.trained_ids[1] for e in examples]),
            "example_id_B": torch.tensor([e.example_id for e in examples]),
            "count_pairs": torch.tensor(len(examples)),
            "count_tokens": torch.tensor(sum(map(len, chosen))),
        }
        row |= _places("chosen", list(map(len, chosen))) | _places("rejected", list(map(len, rejected)))
        if self.references is not None:
            row["reference_L"] = self._reference(examples)
        if self.scores:
            row["score_w_B"] = torch.tensor([e.score_chosen for e in examples])
            row["score_l_B"] = torch.tensor([e.score_rejected for e in examples])
        if examples[0].weight is not None:
            weight_B = torch.tensor([e.weight for e in examples], dtype=torch.float64)
            trained_B = torch.tensor([len(source) for source in chosen], dtype=torch.float64)
            row |= {"weight_B": weight_B.float(), "count_pairs": weight_B.sum()}
            row["count_tokens"] = (weight_B * trained_B).sum()
        return row

    def _reference(self, examples: Sequence[Example]) -> Tensor:
        found = [self.references(example.example_id) for example in examples]
        sides = [chosen for chosen, _ in found] + [rejected for _, rejected in found]
        wanted = [len(e.trained[side]) for side in (0, 1) for e in examples]
        for example, values, length in zip([*examples, *examples], sides, wanted, strict=True):
            if len(values) != length:
                raise ValueError(
                    f"the reference cache holds {len(values)} log-probs for a completion of {length} tokens"
                    f" of example {example.example_id}: it was made for other data; delete it"
                    " with scripts/cache.py"
                )
        return torch.from_numpy(np.concatenate(sides).astype(np.float32, copy=False))


def model_inputs(row: dict[str, Tensor]) -> dict[str, Any]:
    """Return the keywords with which a taught model (`models/logprobs.py`) gives `logp_L` of the row."""
    return {key: row[key] for key in MODEL_KEYS}


def pair_of(row: dict[str, Tensor], output: ModelOutput, reference_L: Tensor | None = None) -> Pair:
    """Return the row's per-token log-probs as a Pair.

    output: the policy's log-probs in the row's order, nats, with gradient; and features, if it was taught any.
    reference_L: the reference's, in the same order; default: the row's own, if it has them. Every side is 0 outside
    its mask.
    """
    reference_L = row.get("reference_L") if reference_L is None else reference_L
    logp_L, features = output if isinstance(output, tuple) else (output, {})
    split = row["chosen_at"].shape[0]

    def side(name: str, part: slice) -> Side:
        part_of = {key: value_L[part] for key, value_L in features.items()}
        return _side(row, name, logp_L[part], None if reference_L is None else reference_L[part], part_of)

    chosen = side("chosen", slice(split))
    rejected = side("rejected", slice(split, None)) if row["rejected_at"].shape[0] else None
    return Pair(chosen, rejected, row["example_id_B"], *map(row.get, ("score_w_B", "score_l_B", "weight_B")))


def _side(
    row: dict[str, Tensor], name: str, logp_L: Tensor, reference_L: Tensor | None, features: dict[str, Tensor]
) -> Side:
    mask_BT, at_L = row[f"{name}_mask_BT"], row[f"{name}_at"]

    def spread(value_L: Tensor) -> Tensor:
        return value_L.new_zeros(mask_BT.numel()).index_copy(0, at_L, value_L).view(mask_BT.shape)

    reference_BT = None if reference_L is None else spread(reference_L.detach().to(logp_L.dtype))
    return Side(
        spread(logp_L), reference_BT, mask_BT, {key: spread(value_L) for key, value_L in features.items()}
    )


def _place(example: Example, layout: str) -> dict[str, Any]:
    """Lay one example out from position 0: its tokens, positions, spans and predicting positions."""
    prompt, chosen, rejected = len(example.prompt_ids), len(example.chosen_ids), len(example.rejected_ids)
    _check(example)
    trunk, branch = np.arange(prompt + chosen), np.arange(prompt, prompt + rejected)
    tokens = [example.prompt_ids, example.chosen_ids]
    chosen_at, rejected_at = example.trained
    if rejected == 0:
        positions, spans, source = [trunk], [(0, prompt + chosen, 0)], branch
    elif layout == "shared_prefix":
        positions, spans = [trunk, branch], [(prompt, prompt + chosen, rejected)]
        # The prompt's last token predicts the first token of both sides.
        source = np.concatenate([[prompt - 1], np.arange(rejected - 1) + prompt + chosen])
        tokens = [*tokens, example.rejected_ids]
    else:
        positions = [trunk, np.arange(prompt + rejected)]
        spans = [(0, prompt + chosen, 0), (0, prompt + rejected, 0)]
        source = np.arange(rejected) + prompt + chosen + prompt - 1
        tokens = [*tokens, example.prompt_ids, example.rejected_ids]
    return {
        "tokens": tokens,
        "positions": positions,
        "spans": spans,
        "chosen_source": chosen_at + prompt - 1,
        "rejected_source": source[rejected_at],
    }


def _check(example: Example) -> None:
    chosen, rejected = map(len, example.trained)
    if len(example.prompt_ids) == 0 or not chosen or (len(example.rejected_ids) and not rejected):
        raise ValueError(
            f"example {example.example_id} has an empty prompt or no completion token to train;"
            " such rows are dropped when data is prepared (data.empty=drop)"
        )


def _places(name: str, lengths: list[int]) -> dict[str, Tensor]:
    """Return the mask of ragged rows and where their tokens go in its flat form."""
    mask = np.arange(max(lengths))[None] < np.asarray(lengths)[:, None]
    return {
        f"{name}_at": torch.from_numpy(np.flatnonzero(mask)),
        f"{name}_mask_BT": torch.from_numpy(mask),
    }


def _int64(pieces: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64, copy=False))
