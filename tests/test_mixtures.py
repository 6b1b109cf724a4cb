"""Mixtures: weighted sums of methods, from the command line to the checkpoint; what they refuse."""

from __future__ import annotations

import json
from math import log, log1p
from pathlib import Path

import numpy as np
import pytest
import torch

from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.config.identity import identify
from sgdpo.mixtures import with_parts
from sgdpo.pairs import DrawKey
from sgdpo.runs.contents import read_contents
from sgdpo.runs.validate import config_errors
from tiny_training import tiny_config, tiny_trainer
from toy_pairs import PREFERENCE, bind, gradients, random_pair, toy_pair

LENGTHS = [(5, 9), (9, 5), (7, 7), (1, 4), (12, 1), (1, 1)]
KEY = DrawKey(3, 1, 2)


def mixed(*parts: tuple[str, float], **more: dict) -> list[dict]:
    return [{"method": name, "weight": weight, **more.get(name, {})} for name, weight in parts]


def loss_of(name: str, pair, **changes):
    method = bind(name, **changes)
    return method(pair, KEY, method.new_state())


@pytest.mark.parametrize("name", [name for name in PREFERENCE if name != "mix"])
def test_a_mixture_of_one_method_is_that_method_to_the_bit(name: str) -> None:
    pair = random_pair(LENGTHS)
    ours, alone = loss_of("mix", pair, parts=mixed((name, 1.0))), loss_of(name, pair)
    assert torch.equal(ours.loss_B, alone.loss_B)
    assert torch.equal(ours.chosen_reward_B, alone.chosen_reward_B)
    assert {key: ours.metrics[key].tolist() for key in alone.metrics} == {
        key: value.tolist() for key, value in alone.metrics.items()
    }
    for mine, theirs in zip(gradients(ours.loss_B, pair), gradients(alone.loss_B, pair), strict=True):
        assert torch.equal(mine, theirs)


def test_by_hand() -> None:
    """On the toy pair: 2 ln(1 + e^-0.4) + 0.3 x 11/15, DPO with beta 0.5 and the chosen answer's likelihood."""
    parts = mixed(("dpo", 2.0), ("nll", 0.3), dpo={"beta": 0.5})
    found = loss_of("mix", toy_pair(), parts=parts)
    assert found.loss_B.item() == pytest.approx(2 * log1p(np.exp(-0.4)) + 0.22, abs=1e-12)
    assert found.chosen_reward_B.item() == pytest.approx(0.3)
    assert found.metrics["mix/nll"].item() == pytest.approx(11 / 15)


def test_the_terms_that_others_have_flags_for_are_mixtures() -> None:
    """RPO is DPO and alpha times the likelihood; a smoothed label is DPO and DPO of exchanged sides."""
    pair = random_pair(LENGTHS)
    rpo = loss_of("rpo", pair, alpha=0.7, beta=0.1).loss_B
    torch.testing.assert_close(
        loss_of("mix", pair, parts=mixed(("dpo", 1.0), ("nll", 0.7))).loss_B, rpo, rtol=1e-13, atol=0
    )


def test_it_needs_what_any_part_needs() -> None:
    method = bind(
        "mix", parts=mixed(("simpo", 1.0), ("sgdpo", 1.0), ("wpo", 0.5), ("odpo", 0.5), ("bco", 1.0))
    )
    assert (method.reference, method.scores, method.draws) == (True, True, True)
    assert method.features == ("log_p2",)
    assert sorted(method.new_state().states) == ["4"]
    assert bind("mix", parts=mixed(("simpo", 1.0))).reference is False


def test_parts_of_one_name_are_told_apart() -> None:
    found = loss_of("mix", toy_pair(), parts=mixed(("dpo", 1.0), ("dpo", 1.0)))
    assert {"mix/dpo", "mix/dpo/1"} <= set(found.metrics)


def test_the_resolved_parts_are_in_the_runs_identity_and_compose_again_to_themselves() -> None:
    parts = "method.parts=[{method: dpo, weight: 1.0}, {method: nll, weight: %s}]"
    one, two = (to_run_config(compose_run(["method=mix", parts % weight])) for weight in ("0.1", "0.2"))
    assert one.method["title"] == "DPO + 0.1 NLL"
    assert one.method["parts"][0] == {
        "weight": 1.0,
        "method": {
            "name": "dpo", "function": "sgdpo.methods.dpo.dpo", "phase": "preference", "beta": 0.1,
            "needs": {"reference": True, "ratios": False, "draws": False, "state": None},
        },
    }  # fmt: skip

    assert with_parts(one.method) == one.method
    hashes = [identify(config, {}, None) for config in (one, two)]
    assert hashes[0].run_hash != hashes[1].run_hash
    assert hashes[0].result_hash != hashes[1].result_hash


def test_what_stands_beside_a_resolved_part_changes_it_too() -> None:
    resolved = with_parts({"parts": [{"method": "dpo", "weight": 1.0}]})["parts"]
    assert with_parts({"parts": [resolved[0] | {"beta": 0.7}]})["parts"][0]["method"]["beta"] == 0.7


def test_the_code_of_a_part_at_any_depth_is_in_the_runs_identity(tmp_path: Path) -> None:
    code, hashes = tmp_path / "my_part.py", []
    inner = "[{method: {name: mine, function: my_part.mine, phase: preference, needs: {}}, weight: 1}]"
    for parts in (inner, f"[{{method: mix, weight: 1, parts: {inner}}}]"):
        for value in (1, 2):
            code.write_text(f"def mine(pair): return {value}\n")
            config = to_run_config(compose_run(["method=mix", f"method.parts={parts}", f"extra=[{code}]"]))
            hashes.append(read_contents(config)["method.code"])
    assert hashes[0] != hashes[1]
    assert hashes[2] != hashes[3]


def test_a_weight_can_be_swept_by_its_place() -> None:
    config = to_run_config(compose_run(["method=mix", "method.parts.1.weight=0.5"]))
    assert [part["weight"] for part in config.method["parts"]] == [1.0, 0.5]


def test_a_part_with_a_state_has_it_in_the_mixture_too_and_through_a_checkpoint(tmp_path: Path) -> None:
    """BCO at weight 1 in a mixture takes BCO's steps, and its shift is BCO's."""
    trainers = {}
    for name, more in (("bco", []), ("mix", ["method.parts=[{method: bco, weight: 1.0}]"])):
        trainers[name] = tiny_trainer(tiny_config(f"method={name}", *more), tmp_path / name, rows=4)
        trainers[name].train()
    alone, mixture = trainers["bco"], trainers["mix"]
    assert mixture.method_state.states["0"].delta == alone.method_state.delta != 0
    for mine, theirs in zip(mixture.rows_written, alone.rows_written, strict=True):
        assert (mine["loss"], mine["rewards/chosen"]) == (theirs["loss"], theirs["rewards/chosen"])
    fresh = mixture.method.new_state()
    fresh.load_state_dict(json.loads(json.dumps(mixture.method_state.state_dict())))
    assert fresh.states["0"].delta == alone.method_state.delta


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("[]", "a mixture of nothing"),
        ("null", "a mixture of nothing"),
        ("3", "must be a list of"),
        ("[dpo]", "parts[0] must be {method: NAME, weight: NUMBER}"),
        ("[{method: dpo}]", "parts[0] must be"),
        ("[{method: [dpo], weight: 1}]", "there is no method ['dpo']; there are alpha_dpo, apo_down"),
        ("[{method: {weight: 1}, weight: 1}]", "must be a name, or all settings of a method with its name"),
        ("[{method: dpp, weight: 1}]", "there is no method 'dpp'; there are alpha_dpo, apo_down"),
        ("[{method: dpo, weight: x}]", "weight='x' does not fit float"),
        ("[{method: dpo, weight: -0.1}]", "weight must be at least 0, not -0.1"),
        ("[{method: dpo, weight: nan}]", "parts[0].weight must"),
        ("[{method: dpo, weight: 0}]", "all weights are 0: a mixture of nothing"),
        (
            "[{method: dpo, weight: 1}, {method: sft, weight: 1}]",
            "sft is of the phase sft, the mixture of preference",
        ),
        ("[{method: dpo, weight: 1, beta: -1}]", "parts[0]: method.beta must be a positive number"),
        ("[{method: dpo, weight: 1, gamma: 1}]", "method.gamma is not a setting of 'dpo'"),
        ("[{method: sgdpo, weight: 1}]", "method 'mix' needs a pilot"),
    ],
)
def test_what_is_no_mixture_is_one_sentence(parts: str, words: str) -> None:
    errors = config_errors(compose_run(["method=mix", f"method.parts={parts}"]))
    assert words in "\n".join(errors)


def test_parts_are_for_mixtures_and_the_ratio_for_parts_that_take_one() -> None:
    (error,) = config_errors(compose_run(["method=dpo", "+method.parts=[{method: dpo, weight: 1}]"]))
    assert "method.parts is for mixtures (method=mix); 'dpo' is none" in error
    (error,) = config_errors(compose_run(["method=mix", "ratio=paper"]))
    assert "method 'mix' takes no ratio" in error
    sgdpo = "method.parts=[{method: sgdpo, weight: 1}, {method: nll, weight: 0.1}]"
    assert config_errors(compose_run(["method=mix", sgdpo, "ratio=paper", "pilot=uniform"])) == []


def test_a_nested_mixture_is_the_sum_of_its_sums() -> None:
    inner = {"method": "mix", "weight": 0.5, "parts": mixed(("dpo", 1.0), ("bco", 2.0))}
    found = loss_of("mix", pair := toy_pair(), parts=[inner, *mixed(("nll", 1.0))])
    expected = (
        0.5 * (loss_of("dpo", pair).loss_B + 2 * loss_of("bco", pair).loss_B) + loss_of("nll", pair).loss_B
    )
    torch.testing.assert_close(found.loss_B, expected, rtol=1e-14, atol=0)
    assert set(found.sums) == {"0/1/rewards"}
    assert log(2) < found.loss_B.item()
