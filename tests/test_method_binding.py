"""Binding a method's YAML to its function: each mistake is one clear error, and all of them come at once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sgdpo import method as binder
from sgdpo.method import Method
from sgdpo.methods.bco import RunningDelta
from sgdpo.pairs import DrawKey, Ratios
from sgdpo.source import load_dotted
from toy_pairs import METHODS, PILOT, method_yaml, toy_pair

NONE: dict = {"name": "none", "chosen": None, "rejected": None}
PAPER: dict = {"name": "paper", "chosen": 0.6, "rejected": 0.9}


def pilot_for(config: dict) -> dict | None:
    needs = config.get("needs")
    return PILOT if isinstance(needs, dict) and needs.get("pilot") else None


def method_errors(config: dict, ratio: dict, extra: Sequence[str] = ()) -> list[str]:
    return binder.method_errors(config, ratio, extra, pilot=pilot_for(config))


def bind_method(config: dict, ratio: dict, extra: Sequence[str] = ()) -> Method:
    return binder.bind_method(config, ratio, extra, pilot=pilot_for(config))


def only_error(config: dict, ratio: dict = NONE) -> str:
    """Return the one error of a configuration, which binding raises too."""
    errors = method_errors(config, ratio)
    assert len(errors) == 1, errors
    with pytest.raises(ValueError, match=r"method|ratio") as raised:
        bind_method(config, ratio)
    assert str(raised.value) == errors[0]
    return errors[0].removesuffix(f" (conf/method/{config['name']}.yaml)")


# ---- what stands in conf/method ----------------------------------------------------------------------------


def test_conf_method_holds_the_papers_seven_methods() -> None:
    assert {"sft", "dpo", "ipo", "nca", "bco", "sampo", "sgdpo"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_binds_as_its_yaml_stands(name: str) -> None:
    config = method_yaml(name)
    needs = config["needs"]
    method = bind_method(config, PAPER if needs["ratios"] else NONE)
    assert method.name == name
    assert method.ratios == (Ratios(0.6, 0.9) if needs["ratios"] else None)
    assert (method.new_state() is None) == (not needs["state"])


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "nca", "bco", "sampo", "sgdpo"])
def test_the_papers_methods_take_what_the_paper_gives_them(name: str) -> None:
    method = bind_method(method_yaml(name), PAPER if name == "sgdpo" else NONE)
    assert method.phase == ("sft" if name == "sft" else "preference")
    assert method.reference == (name != "sft")
    assert method.draws == (name in ("sampo", "sgdpo"))
    assert isinstance(method.new_state(), RunningDelta) == (name == "bco")
    assert method.hyper.get("beta") == (None if name == "sft" else 0.1)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_one_public_function_of_its_own_file(name: str) -> None:
    function = load_dotted(method_yaml(name)["function"])
    module = inspect.getmodule(function)
    public = [
        key for key, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__
    ]
    assert [key for key in public if not key.startswith("_")] == [function.__name__]


# ---- one mistake, one error ---------------------------------------------------------------------------


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    error = only_error(method_yaml("dpo") | {"label_smoothing": 0.1})
    assert error == "method.label_smoothing is not a setting of 'dpo'; it has ['beta']"


@pytest.mark.parametrize(
    ("name", "key", "value", "wanted"),
    [
        ("dpo", "beta", "0.1", "float"),
        ("dpo", "beta", True, "float"),
        ("dpo", "beta", None, "float"),
        ("dpo", "beta", [0.1], "float"),
        ("ipo", "length_average", 1, "bool"),
        ("ipo", "length_average", "true", "bool"),
        ("sampo", "draw", "both", "one of shared, independent"),
        ("bco", "delta", 0.0, "one of running, none"),
    ],
)
def test_a_wrong_type_or_option_is_named_with_what_fits(
    name: str, key: str, value: object, wanted: str
) -> None:
    assert only_error(method_yaml(name) | {key: value}) == f"method.{key}={value!r} does not fit {wanted}"


def test_an_integer_serves_as_a_number() -> None:
    assert bind_method(method_yaml("dpo") | {"beta": 1}, NONE).hyper == {"beta": 1}


@pytest.mark.parametrize("beta", [0, 0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["dpo", "ipo", "bco"])
def test_beta_must_be_positive_and_finite(name: str, beta: float) -> None:
    assert "method.beta must be a positive number" in only_error(method_yaml(name) | {"beta": beta})


def test_a_setting_that_the_yaml_leaves_out_is_named() -> None:
    config = method_yaml("dpo")
    del config["beta"]
    assert only_error(config) == "method 'dpo' lacks ['beta'] in its YAML"


@pytest.mark.parametrize("name", [name for name in METHODS if not method_yaml(name)["needs"]["ratios"]])
@pytest.mark.parametrize("ratio", [PAPER, {"chosen": 0.6}, {"rejected": 0.9, "chosen": None}])
def test_a_ratio_for_a_method_that_takes_none_is_refused(name: str, ratio: dict) -> None:
    error = only_error(method_yaml(name), ratio)
    given = [f"ratio.{key}" for key in ("chosen", "rejected") if ratio.get(key)]
    assert f"method '{name}' takes no ratio" in error
    assert all(key in error for key in given)
    assert "ratio=none" in error


@pytest.mark.parametrize("key", ["chosen", "rejected"])
@pytest.mark.parametrize("value", [-1e-9, -0.5, 1.0000001, 60, float("nan")])
def test_a_ratio_outside_0_to_1_is_named_with_its_range(key: str, value: float) -> None:
    assert f"ratio.{key} must lie in [0, 1], not {value}" in only_error(
        method_yaml("sgdpo"), PAPER | {key: value}
    )


@pytest.mark.parametrize("key", ["chosen", "rejected"])
def test_a_missing_ratio_is_named_with_the_papers(key: str) -> None:
    error = only_error(method_yaml("sgdpo"), PAPER | {key: None})
    assert f"needs ratio.{key} in [0, 1]" in error
    assert "ratio=paper" in error


@pytest.mark.parametrize("value", [0, 0.0, 1e-9, 0.6, 1, 1.0])
def test_the_whole_range_of_ratios_is_taken_with_both_ends(value: float) -> None:
    method = bind_method(method_yaml("sgdpo"), {"chosen": value, "rejected": value})
    assert method.ratios == Ratios(value, value)


# ---- mistakes in the YAML's form ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["function", "phase", "needs"])
def test_a_yaml_without_a_required_key_is_pointed_to_an_example(key: str) -> None:
    config = method_yaml("dpo")
    del config[key]
    assert only_error(config).startswith(f"method 'dpo' lacks ['{key}']; see conf/method/")


@pytest.mark.parametrize("path", ["sgdpo.methods.nowhere.f", "sgdpo.methods.dpo.dpoo", "dpo", ""])
def test_a_function_that_cannot_be_imported_is_named(path: str) -> None:
    assert f"method.function: cannot import {path!r}" in only_error(method_yaml("dpo") | {"function": path})


@pytest.mark.parametrize("path", ["os.getcwd", "torch.sum", "wandb.init"])
@pytest.mark.parametrize("key", ["function", "state"])
def test_a_path_to_what_is_installed_beside_is_refused(path: str, key: str) -> None:
    config = method_yaml("bco")
    error = only_error(
        config | ({"function": path} if key == "function" else {"needs": config["needs"] | {"state": path}})
    )
    assert f"cannot import {path!r}" in error
    assert "extra=[" in error


def test_a_function_or_a_state_of_another_form_is_refused_before_it_is_called() -> None:
    config = method_yaml("bco")
    errors = method_errors(config | {"function": "sgdpo.methods.bco.RunningDelta"}, NONE)
    assert "sgdpo.methods.bco.RunningDelta is no function" in errors[0]
    errors = method_errors(method_yaml("sft") | {"function": "sgdpo.pilot.pilot_size"}, NONE)
    assert "sgdpo.pilot.pilot_size must take (pair, *, settings), not (length_B, ratio)" in errors[0]
    assert "is no class" in only_error(
        config | {"needs": config["needs"] | {"state": "sgdpo.methods.bco.bco"}}
    )


def test_an_unknown_phase_is_refused() -> None:
    assert "must be sft or preference, not 'rl'" in only_error(method_yaml("dpo") | {"phase": "rl"})


@pytest.mark.parametrize(
    ("name", "needs", "words"),
    [
        ("dpo", {"reference": True, "rewards": True}, "unknown keys ['rewards']"),
        ("dpo", ["reference"], "must be a mapping"),
        ("dpo", {"reference": True, "draws": True}, "its function does not take 'draws'"),
        ("sampo", {"reference": True}, "its function takes 'draws'"),
        ("bco", {"reference": True}, "its function takes 'state'"),
        ("bco", {"reference": True, "state": "sgdpo.methods.bco.Delta"}, "method.needs.state: cannot import"),
        ("simpo", {"reference": True, "features": ["log_p3"]}, "method.needs.features must be a list of"),
    ],
)
def test_needs_that_are_unknown_or_do_not_fit_the_function_are_named(name: str, needs, words: str) -> None:
    assert words in only_error(method_yaml(name) | {"needs": needs})


@pytest.mark.parametrize("name", METHODS)
def test_what_a_function_looks_at_must_be_among_its_needs(name: str) -> None:
    """Take away each need that a method has: an error names it now, where its first step would end in a traceback."""
    config = method_yaml(name)
    for key in (key for key in ("reference", "scores", "features") if config["needs"].get(key)):
        less = config | {"needs": config["needs"] | {key: [] if key == "features" else False}}
        assert any(f"method.needs.{key}" in error for error in method_errors(less, PAPER)), key


@pytest.mark.parametrize("value", [5, "x", [5], [["a"]], {"a": 1}], ids=str)
def test_a_need_of_another_type_is_named_in_a_method_in_a_part_and_in_a_pilot(value: object) -> None:
    for key in binder.NEEDS:
        config = method_yaml("dpo") | {"needs": {"reference": True, key: value}}
        mixture = method_yaml("mix") | {"parts": [{"method": config, "weight": 1.0}]}
        for given in (config, mixture):
            assert any(f"method.needs.{key}" in error for error in method_errors(given, NONE)), (key, given)
    for key in ("features", "whole"):
        errors = binder.method_errors(method_yaml("sgdpo"), PAPER, pilot=PILOT | {key: value})
        assert [key in error for error in errors] == [True]


@pytest.mark.parametrize("colour", ["red", "#12", 5, ["#0072B2"]], ids=str)
def test_a_colour_that_no_figure_can_draw_is_refused(colour: object) -> None:
    assert "method.colour must be as in" in only_error(method_yaml("dpo") | {"colour": colour})


# ---- several mistakes, all at once --------------------------------------------------------------------


def test_all_errors_come_at_once_each_on_its_line() -> None:
    config = method_yaml("sgdpo") | {"beta": -1.0, "draw": "both", "typo": 1}
    errors = method_errors(config, {"chosen": 1.5, "rejected": None})
    for words in ("method.beta", "method.draw", "method.typo", "ratio.chosen", "ratio.rejected"):
        assert sum(words in error for error in errors) == 1, words
    assert len(errors) == 5
    with pytest.raises(ValueError, match="typo") as raised:
        bind_method(config, {"chosen": 1.5, "rejected": None})
    assert str(raised.value).splitlines() == errors


# ---- adding a method ----------------------------------------------------------------------------------

HINGE = """
import torch
from sgdpo.pairs import Pair, PairLoss, Ratios, rewards

class Count:
    def __init__(self):
        self.calls = 0

    def advance(self, sums):
        pass

    def state_dict(self):
        return vars(self)

    def load_state_dict(self, state):
        vars(self).update(state)

def hinge(pair: Pair, *, beta: float, margin: float = 1.0, rounds: int = 1, ratios: Ratios, state: Count) -> PairLoss:
    state.calls += 1
    h_B = pair.chosen.ratio_B - ratios.rejected * pair.rejected.ratio_B
    return PairLoss(torch.relu(margin - beta * h_B), *rewards(pair, beta))
"""


def test_a_new_method_is_one_function_and_one_yaml(tmp_path: Path) -> None:
    """margin - beta (0.6 - 0.5 (-0.2)) = 2 - 0.5 0.7 = 1.65; without the margin's key its default, 0.65."""
    extra = [str(tmp_path / "a_new_method.py")]
    Path(extra[0]).write_text(HINGE)
    config = {
        "name": "a_new_method",
        "function": "a_new_method.hinge",
        "phase": "preference",
        "needs": {"reference": True, "ratios": True, "draws": False, "state": "a_new_method.Count"},
        "beta": 0.5,
    }
    assert method_errors(config | {"rounds": True}, PAPER, extra) == ["method.rounds=True does not fit int"]
    for hyper, expected in (({"margin": 2.0}, 1.65), ({}, 0.65)):
        method = bind_method(config | hyper, {"chosen": 1.0, "rejected": 0.5}, extra)
        state = method.new_state()
        loss = method(toy_pair(), DrawKey(1), state)
        torch.testing.assert_close(loss.loss_B, torch.tensor([expected], dtype=torch.float64))
        assert loss.chosen_reward_B.item() == pytest.approx(0.3)
        assert state.calls == 1


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("loss_B", "not Tensor"),
        ("PairLoss(loss_B.mean())", r"not losses of the shape \(\)"),
        ("None", "not NoneType"),
    ],
)
def test_a_function_that_does_not_return_a_loss_of_each_pair_trains_nothing(
    tmp_path, returned, words
) -> None:
    """A mean over the row would count as one pair, and no number would look wrong."""
    extra = [str(tmp_path / "a_bad_method.py")]
    text = HINGE.replace("return PairLoss(", "loss_B = (").replace(", *rewards(pair, beta)", "")
    Path(extra[0]).write_text(f"{text}    return {returned}\n")
    needs = {"reference": True, "ratios": True, "draws": False, "state": "a_bad_method.Count"}
    config = {
        "name": "bad",
        "function": "a_bad_method.hinge",
        "phase": "preference",
        "needs": needs,
        "beta": 0.5,
    }
    method = bind_method(config, PAPER, extra)
    with pytest.raises(ValueError, match=f"one loss for each of 1 pairs, unreduced, {words}"):
        method(toy_pair(), DrawKey(1), method.new_state())
