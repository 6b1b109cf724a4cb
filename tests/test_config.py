"""Every YAML composes, table 2 resolves by itself, and everything wrong is said at once, before anything loads."""

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from sgdpo.config.compose import CONF, compose_run, composition_words, list_errors, to_run_config
from sgdpo.config.identity import Identity, start_config
from sgdpo.config.schema import RunConfig
from sgdpo.runs.run import Run
from sgdpo.runs.validate import config_errors

GROUPS = ("model", "method", "ratio", "optimizer", "data", "trainer", "precision", "tracking", "engine")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str):
    return to_run_config(compose_run(list(overrides)))


def identity(config: RunConfig) -> Identity:
    return Run.of(config).identity


def errors(*overrides: str) -> str:
    return "\n".join(config_errors(compose_run(list(overrides))))


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_option_composes(group: str, option: str) -> None:
    overrides = [f"{group}={option}"]
    if group == "ratio" and option == "none":
        overrides.append("method=dpo")
    assert composed(*overrides).experiment == "default"


@pytest.mark.parametrize(
    ("overrides", "phase"),
    [
        (["model=llama31_8b", "method=sft"], (2e-5, 128, 3)),
        (["model=qwen2_7b", "method=sft"], (2e-5, 128, 3)),
        (["model=llama31_8b_instruct", "method=sgdpo"], (5e-7, 128, 1)),
        (["model=qwen2_7b_instruct", "method=dpo"], (5e-7, 128, 1)),
    ],
)
def test_the_papers_models_resolve_to_table_2_without_a_flag(overrides: list[str], phase: tuple) -> None:
    """Table 2: SFT 2e-5, 128, 3 epochs; PO 5e-7, 128, 1 epoch; both cosine with warm-up 0.1."""
    optimizer = composed(*overrides).optimizer
    assert (optimizer.lr, optimizer.batch_size, optimizer.epochs) == phase
    assert (optimizer.schedule, optimizer.warmup_ratio) == ("cosine", 0.1)


def test_base_and_tiny_models_start_from_sft_and_instruct_models_as_they_are() -> None:
    starts = {
        name: composed(f"model={name}").init for name in ("tiny_llama", "llama31_8b", "qwen2_7b_instruct")
    }
    assert starts == {"tiny_llama": "sft", "llama31_8b": "sft", "qwen2_7b_instruct": "pretrained"}


def test_beta_is_the_papers_for_every_preference_method() -> None:
    methods = {"dpo", "ipo", "nca", "bco", "sampo", "sgdpo"}
    assert {name: composed(f"method={name}").method["beta"] for name in methods} == dict.fromkeys(
        methods, 0.1
    )


def test_a_method_brings_its_own_default_ratio() -> None:
    assert (composed().ratio.chosen, composed().ratio.rejected) == (0.6, 0.9)
    assert composed("method=dpo").ratio.chosen is None
    assert composed("ratio=llama31_base").ratio.chosen == 0.7


def test_the_command_line_wins_over_what_a_model_selects() -> None:
    assert composed("model=llama31_8b", "optimizer=tiny").optimizer.name == "tiny"
    assert composed("optimizer.lr=1e-3").optimizer.lr == 1e-3


# ---- identity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "experiment=x",
        "outputs=elsewhere",
        "resume=never",
        "tracking=off",
        "trainer.save_steps=7",
        "device=cpu",
    ],
)
def test_where_and_how_a_run_is_watched_does_not_change_its_identity(override: str) -> None:
    assert identity(composed(override)).settings_hash == identity(composed()).settings_hash


@pytest.mark.parametrize(
    "override",
    ["seed=1", "optimizer.lr=1e-5", "ratio.chosen=0.8", "method.beta=0.2", "data.max_length=200", "precision=bf16",
     "optimizer.sft.lr=1e-2", "model.tiny.hidden_size=64", "trainer.log_steps=5", "engine.num_processes=2"],
)  # fmt: skip
def test_what_changes_the_numbers_changes_the_identity(override: str) -> None:
    assert identity(composed(override)).settings_hash != identity(composed()).settings_hash


def test_what_deepspeed_is_told_beside_its_layout_changes_the_identity_and_the_weights() -> None:
    engine = "engine=zero2"
    plain, further, cut = (
        identity(composed(engine, *more))
        for more in ([], ["+engine.deepspeed.optimizer={type: SGD}"], ["engine.deepspeed.steps_per_print=1"])
    )
    assert "deepspeed" not in plain.settings
    assert (cut.run_hash, cut.result_hash) == (plain.run_hash, plain.result_hash)
    assert plain.run_hash != further.run_hash
    assert plain.result_hash != further.result_hash


def test_the_same_ratios_by_name_or_by_value_are_one_run() -> None:
    by_value = composed("ratio=full", "ratio.chosen=0.6", "ratio.rejected=0.9")
    assert identity(by_value) == identity(composed("ratio=paper"))


@pytest.mark.parametrize(
    "override",
    ["method=dpo", "ratio.chosen=0.8", "optimizer.lr=1e-3", "trainer.eval_steps=3", "reference=live",
     "optimizer.preference.epochs=3", "engine.num_processes=2"],
)  # fmt: skip
def test_every_cell_of_a_sweep_shares_one_sft_start(override: str) -> None:
    start = identity(start_config(composed())).result_hash
    assert identity(start_config(composed(override))).result_hash == start


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=tiny_qwen2",
        "data.world.pairs=99",
        "optimizer.sft.lr=1e-2",
        "trainer.on_nonfinite=skip",
    ],
)
def test_another_model_seed_or_data_has_another_start(override: str) -> None:
    start = identity(start_config(composed())).result_hash
    assert identity(start_config(composed(override))).result_hash != start


def test_the_start_is_the_run_that_method_sft_makes() -> None:
    assert identity(start_config(composed())).settings_hash == identity(composed("method=sft")).settings_hash


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override", ["typo=1", "+typo=1", "optimizer.typo=1", "model.typo=1", "method.typo=1"]
)
def test_an_unknown_key_is_an_error(override: str) -> None:
    """Hydra refuses most; what `+` lets through is found by walking the dataclasses."""
    try:
        found = errors(override)
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        found = str(error)
    assert "typo" in found


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("methd=dpo", "unknown key 'methd': did you mean method?"),
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr': did you mean optimizer.lr?"),
        ("optimizer.sft={epoch: 3}", "unknown key 'optimizer.sft.epoch': did you mean optimizer.sft.epochs?"),
        (
            "model.tiny={head_dim: 8}",
            "unknown key 'model.tiny.head_dim': did you mean model.tiny.tie_word_embeddings? (a new one is added "
            "with +model.tiny.head_dim=...)",
        ),
        ("nothing_like_it=1", "unknown key 'nothing_like_it': no setting here has this name (see conf/)"),
        ("batch_size=4", "unknown key 'batch_size': did you mean optimizer.batch_size?"),
        ("beta=0.3", "unknown key 'beta': did you mean method.beta?"),
        ("name=mine", "unknown key 'name': no setting here has this name (see conf/)"),
        (
            "seed=1,2",
            "seed=1,2: several values are a sweep (src/train.py -m); a text with a comma is \"seed='1,2'\"",
        ),
        ("method", "'method' is no setting: KEY=VALUE in one word (--help lists them)"),
        (
            "data.train=Paare ä.csv",
            "data.train=Paare ä.csv: token recognition error at: 'ä'; a plain text goes into quotes of its own: "
            "\"data.train='Paare ä.csv'\"",
        ),
        ("method = dpo", "'method = dpo' is no setting: KEY=VALUE in one word (--help lists them)"),
    ],
)
def test_a_slip_of_the_keyboard_is_answered_in_our_words(override: str, said: str) -> None:
    """Hydra's advice, to append the key, leads to the next error."""
    with pytest.raises(HydraException) as error:
        compose_run([override])
    assert composition_words(error.value) == said


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("method=DPO", "(did you mean dpo?)"),
        ("model=org/name", "(one of your own is model=local model.path=org/name)"),
        ("data=org/name", "(one of your own is data=hub data.train=org/name)"),
        ("data=/", "(one of your own is data=local data.train=/)"),
    ],
)
def test_an_unknown_option_is_answered_with_what_may_be_meant(override: str, meant: str) -> None:
    with pytest.raises(HydraException) as error:
        compose_run([override])
    assert f"{meant}: Available options in" in composition_words(error.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("ratio=0.6", "a value goes to a key of it: ratio.chosen, ratio.rejected"),
        ("ratio=0.6,1e-1", "a value goes to a key of it: ratio.chosen, ratio.rejected"),
        ("method=0.1", "a value goes to a key of it: method.KEY"),
        ("sweep=3", ", table4"),
        ("method.name=dpo", "take that one with method=dpo"),
        ("model.name=mine,tiny_qwen2", "take that one with model=tiny_qwen2"),
    ],
)
def test_a_value_for_a_group_and_the_name_of_another_option_are_refused(word: str, said: str) -> None:
    """Hydra names no key for the one; the other would show a method in every table that did not run."""
    (error,) = list_errors([word])
    assert error.endswith(said)


def test_a_name_of_ones_own_is_taken_and_an_options_beside_it() -> None:
    assert (
        list_errors(
            ["method.name=mine", "method=dpo", "method.name=dpo", "ratio.chosen=0.6", "method=dpo,bco"]
        )
        == []
    )


def test_an_unknown_option_lists_the_options() -> None:
    with pytest.raises(MissingConfigException, match=r"(?s)Available options in 'method'.*dpo.*sgdpo"):
        compose_run(["method=nonsense"])


def test_a_wrong_type_is_named() -> None:
    with pytest.raises(ConfigCompositionException, match=r"optimizer\.lr=fast"):
        compose_run(["optimizer.lr=fast"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ratio.chosen=1.5"], "ratio.chosen must lie in [0, 1], not 1.5"),
        (["ratio.rejected=-0.1"], "ratio.rejected must lie in [0, 1]"),
        (["method=dpo", "ratio=paper"], "method 'dpo' takes no ratio"),
        (["ratio=none"], "needs ratio.chosen"),
        (["method.beta=0"], "method.beta must be a positive number"),
        (["+method.gamma=1"], "method.gamma is not a setting of 'sgdpo'"),
        (["method.draw=sometimes"], "one of shared, independent"),
        (["data.max_prompt_length=256"], "data.max_prompt_length (256) must be smaller"),
        (["optimizer.lr=0"], "optimizer.lr must be a positive number"),
        (["optimizer.batch_size=0"], "optimizer.batch_size must be at least 1"),
        (["init=scratch"], "init must be one of sft, pretrained"),
        (["reference=none"], "reference must be one of cached, live"),
        (["data=local"], "data.train"),
        (["data=local", "data.train=missing.parquet"], "missing.parquet"),
        (["model=local"], "model.path"),
        (["model=smollm2_135m", "model.path=nowhere/at/all"], "make smollm2"),
        (["experiment=a/b"], "plain folder name"),
        (["method.phase=pref"], "method.phase must be sft or preference, not 'pref'"),
        (["method.phase=null"], "method.phase must be sft or preference, not None"),
    ],
)
def test_bad_values_are_named_with_advice(overrides: list[str], message: str) -> None:
    assert message in errors(*overrides)


def test_all_errors_of_a_configuration_come_at_once() -> None:
    found = config_errors(compose_run(["ratio.chosen=2", "method.beta=-1", "optimizer.lr=0", "init=scratch"]))
    assert len(found) == 4


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in errors(f"outputs={tmp_path}/file/runs")


def test_the_default_run_is_valid() -> None:
    assert config_errors(compose_run([])) == []
