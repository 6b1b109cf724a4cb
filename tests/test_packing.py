"""Packed rows: where every token, position and prediction goes, and how log-probs are read back as a pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packed_rows import make_examples
from sgdpo.data.example import Example
from sgdpo.data.packing import RowCollator, model_inputs, pair_of


def example(
    prompt: list[int], chosen: list[int], rejected: list[int], mask: list[int] | None = None
) -> Example:
    sides = [np.array(ids, np.int32) for ids in (prompt, chosen, rejected)]
    return Example(77, *sides, np.array(mask if mask is not None else [1] * len(chosen), bool))


def test_a_shared_prefix_row_written_out() -> None:
    """Prompt 1 2, chosen 3 4, rejected 5 6 7; then a second pair with prompt 8, chosen 9, rejected 10.

    Index  0 1 2 3 4 5 6 | 7 8 9     Token 3 is predicted by the state at 1, token 4 by 2; the rejected 5 again
    Token  1 2 3 4 5 6 7 | 8 9 10    by 1 (the prompt's end), 6 by 4, 7 by 5. In the second pair 9 and 10 are
    Place  0 1 2 3 2 3 4 | 0 1 1     both predicted by 7.
    """
    row = RowCollator("shared_prefix")([example([1, 2], [3, 4], [5, 6, 7]), example([8], [9], [10])])
    assert row["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert row["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1, 1]]
    assert row["span_S3"].tolist() == [[2, 4, 3], [1, 2, 1]]
    assert row["target_L"].tolist() == [3, 4, 9, 5, 6, 7, 10]
    assert row["source_L"].tolist() == [1, 2, 7, 1, 4, 5, 7]
    assert row["chosen_mask_BT"].tolist() == [[True, True], [True, False]]
    assert row["rejected_mask_BT"].tolist() == [[True, True, True], [True, False, False]]
    assert row["chosen_at"].tolist() == [0, 1, 2]
    assert row["rejected_at"].tolist() == [0, 1, 2, 3]
    assert (row["count_pairs"].item(), row["count_tokens"].item()) == (2, 3)


def test_a_separate_row_written_out() -> None:
    """[1 2 3 4] and [1 2 5]: the second copy of the prompt begins at 4; its end, at 5, predicts token 5."""
    row = RowCollator("separate")([example([1, 2], [3, 4], [5])])
    assert row["input_ids"].tolist() == [[1, 2, 3, 4, 1, 2, 5]]
    assert row["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert row["span_S3"].tolist() == [[0, 4, 0], [0, 3, 0]]
    assert row["target_L"].tolist() == [3, 4, 5]
    assert row["source_L"].tolist() == [1, 2, 5]


@pytest.mark.parametrize("layout", ["shared_prefix", "separate"])
def test_an_sft_row_has_one_side_and_trains_the_marked_tokens_alone(layout) -> None:
    """Of 3 4 5 6 only 4 and 6 are marked (a user's turn lies between); states 2 and 4 predict them."""
    row = RowCollator(layout)([example([1, 2], [3, 4, 5, 6], [], mask=[0, 1, 0, 1])])
    assert row["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert row["span_S3"].tolist() == [[0, 6, 0]]
    assert row["target_L"].tolist() == [4, 6]
    assert row["source_L"].tolist() == [2, 4]
    assert row["count_tokens"].item() == 2
    pair = pair_of(row, torch.tensor([-1.0, -2.0]))
    assert pair.rejected is None
    assert pair.chosen.logp_BT.tolist() == [[-1, -2]]


def test_log_probs_come_back_as_a_pair_and_gradients_go_the_same_way() -> None:
    row = RowCollator("shared_prefix")([example([1, 2], [3, 4], [5, 6, 7]), example([8], [9], [10])])
    logp_L = torch.tensor([-1.0, -2, -3, -4, -5, -6, -7], requires_grad=True)
    pair = pair_of(row, logp_L)
    assert pair.chosen.logp_BT.tolist() == [[-1, -2], [-3, 0]]
    assert pair.rejected.logp_BT.tolist() == [[-4, -5, -6], [-7, 0, 0]]
    assert pair.chosen.reference_BT is None
    (pair.chosen.logp_BT.sum() - 2 * pair.rejected.logp_BT.sum()).backward()
    assert logp_L.grad.tolist() == [1, 1, 1, -2, -2, -2, -2]


def test_reference_values_are_laid_out_as_the_policys() -> None:
    values = {77: (np.array([-1, -2], np.float32), np.array([-3, -4, -5], np.float32))}
    row = RowCollator("shared_prefix", values.__getitem__)([example([1, 2], [3, 4], [5, 6, 7])])
    pair = pair_of(row, torch.zeros(5, requires_grad=True))
    assert pair.chosen.reference_BT.tolist() == [[-1, -2]]
    assert pair.rejected.reference_BT.tolist() == [[-3, -4, -5]]
    assert not pair.chosen.reference_BT.requires_grad


def test_reference_values_of_another_length_are_refused() -> None:
    values = {77: (np.zeros(3, np.float32), np.zeros(3, np.float32))}
    with pytest.raises(ValueError, match="holds 3 log-probs for a completion of 2 tokens of example 77"):
        RowCollator("shared_prefix", values.__getitem__)([example([1, 2], [3, 4], [5, 6, 7])])


def test_the_order_of_pairs_in_a_row_changes_only_the_order() -> None:
    examples = make_examples([(3, 5, 2), (2, 1, 6), (4, 4, 4)])
    logp = {
        e.example_id: (-np.arange(len(e.chosen_ids)), -10.0 - np.arange(len(e.rejected_ids)))
        for e in examples
    }
    sums = {}
    for order in (examples, examples[::-1]):
        row = RowCollator("shared_prefix")(order)
        flat = [logp[e.example_id][side] for side in (0, 1) for e in order]
        pair = pair_of(row, torch.from_numpy(np.concatenate(flat)))
        for index, example_id in enumerate(pair.example_id_B.tolist()):
            found = (pair.chosen.logp_BT[index].sum().item(), pair.rejected.logp_BT[index].sum().item())
            assert sums.setdefault(example_id, found) == found


@pytest.mark.parametrize(
    "broken", [example([], [1], [2]), example([1], [], [2]), example([1], [2], [3], mask=[0])]
)
def test_an_empty_prompt_or_completion_is_refused(broken) -> None:
    with pytest.raises(ValueError, match="example 77 has an empty prompt or no completion token"):
        RowCollator("shared_prefix")([broken])


def test_the_models_inputs_are_tensors_alone() -> None:
    row = RowCollator("shared_prefix")(make_examples([(3, 5, 2)]))
    assert all(isinstance(value, torch.Tensor) for value in row.values())
    assert set(model_inputs(row)) == {"input_ids", "position_ids", "span_S3", "source_L", "target_L"}
