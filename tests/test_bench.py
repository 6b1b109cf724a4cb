"""The benchmark measures what it says: the same losses in every variant, honest counts, tables with ratios."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import ON_A_GPU, parse
from lab.bench import added, cli, peers, rounds
from lab.bench.peers import write_random
from lab.bench.rounds import Measurement, Variant, around, fixed_lengths, load, save, ultrafeedback_like
from lab.bench.steps import Stepper, build_model, measure, random_model, useful_flops
from lab.report.exhibit import publish
from packed_rows import tiny_model
from sgdpo.console import Failure
from sgdpo.drawing.table import Table
from sgdpo.places import CONF, ROOT
from toy_pairs import PREFERENCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench_model")
    tiny_model().save_pretrained(path)
    return str(path)


def gradients(variant: Variant, examples) -> list[torch.Tensor]:
    """Return the gradients of one step, caught before the optimizer."""
    stepper = Stepper(variant, build_model(variant))
    caught: list[torch.Tensor] = []
    stepper.optimizer.step = lambda: caught.extend(p.grad.clone() for p in stepper.model.parameters())
    cached = [torch.full_like(value, -2.0) for value in stepper.reference(examples)]
    stepper.step(examples, cached)
    return caught


@pytest.mark.parametrize(
    "change",
    [{"layout": "separate"}, {"layout": "padded", "head": "dense"}, {"head": "dense"}, {"max_tokens": 60}],
)
def test_every_variant_takes_the_same_step(folder, change) -> None:
    """Reference log-probs of -2 a token stand in for a cache, so that the loss is far from its first value."""
    base = Variant(model=folder, batch=3)
    examples = ultrafeedback_like(3, 100, 80, seed=1)
    for one, other in zip(
        gradients(base, examples), gradients(replace(base, **change), examples), strict=True
    ):
        assert torch.allclose(one, other, atol=2e-5)


def test_a_live_reference_equals_a_cached_one(folder) -> None:
    examples = ultrafeedback_like(2, 100, 60, seed=2)
    steppers = [Stepper(v, build_model(v)) for v in (Variant(folder), Variant(folder, reference="live"))]
    for one, other in zip(*(stepper.reference(examples) for stepper in steppers), strict=True):
        assert torch.equal(one, other)


def test_useful_work_written_out(folder) -> None:
    """One pair: prompt 3, chosen 2, rejected 4. P parameters in the layers' matrices, H in the head, width A.

    Shared: 9 tokens through the layers; the trunk of 5 sees 15 keys in all, the branch 4 * 3 + 10 = 22.
    Separate: 5 + 7 = 12 tokens; trunks of 5 and 7 see 15 + 28 = 43 keys. The head sees 6 tokens.
    """
    model, examples = tiny_model(), fixed_lengths(1, 3, 2, 100, seed=0)
    object.__setattr__(examples[0], "rejected_ids", examples[0].rejected_ids[[0, 1, 0, 1]])
    matrices = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.ndim == 2)
    head, width = model.lm_head.weight.numel(), model.config.hidden_size * 2
    assert useful_flops(model, examples, "shared_prefix") == 6 * (9 * matrices + 6 * head) + 12 * 37 * width
    assert useful_flops(model, examples, "separate") == 6 * (12 * matrices + 6 * head) + 12 * 43 * width


def test_a_measurement_counts_steps_pairs_and_tokens(folder) -> None:
    examples = fixed_lengths(6, 5, 4, 100, seed=0)
    found = measure(Variant(folder, batch=2, steps=2), examples)
    assert (found.pairs, found.completion_tokens, found.tokens) == ([2, 2], [16, 16], [26, 26])
    assert len(found.seconds) == 2
    assert found.pairs_per_second == pytest.approx(4 / sum(found.seconds))
    assert found.utilisation == pytest.approx(sum(found.flops) / sum(found.seconds) / found.peak_flops)
    assert found.memory_mb > 10
    assert set(found.method_ms) == {"dpo", "sgdpo"}
    assert Measurement(**{**asdict(found), "variant": found.variant}) == found


def test_generated_lengths_look_like_ultrafeedbacks_and_survive_a_file(tmp_path) -> None:
    examples = ultrafeedback_like(400, 1000, 2048, seed=0)
    prompts = sorted(len(e.prompt_ids) for e in examples)
    assert 80 < prompts[200] < 140
    assert max(len(e.prompt_ids) + max(len(e.chosen_ids), len(e.rejected_ids)) for e in examples) <= 2048
    save(tmp_path / "pairs.npz", examples)
    for one, other in zip(examples, load(tmp_path / "pairs.npz"), strict=True):
        assert one.prompt_ids.tolist() == other.prompt_ids.tolist()
        assert one.rejected_ids.tolist() == other.rejected_ids.tolist()


def measured(variant: Variant, seconds: float, memory: float) -> Measurement:
    return Measurement(variant, [seconds], [4], [100], [200], [1e9], 4e9, memory, {"dpo": 1.0, "sgdpo": 1.5})


def test_ratios_compare_measurements_of_the_same_round() -> None:
    """The machine halves its speed in round 2: twice as fast in both rounds, though 1 s is slower than 0.5 s.

    4 pairs in 1 s and 0.5 s are 4 and 8 pairs/s; medians of (4, 2) and (8, 4) are 3 and 6.
    """
    slow, fast = Variant("m"), Variant("m", layout="separate")
    found = [
        [measured(slow, 1.0, 100), measured(slow, 2.0, 100)],
        [measured(fast, 0.5, 50), measured(fast, 1.0, 50)],
    ]
    assert rounds.speed_ratios(found[1], found[0]) == [2, 2]
    table = rounds.table(found)
    assert [row[1].text for row in table.rows] == ["3.000", "6.000"]
    assert [entry.text for entry in table.rows[1][-2:]] == ["2.00 (2.00 to 2.00)", "0.50"]
    assert table.header[-2] == "speed against the first, median of 2 rounds (least to greatest)"


def test_a_number_of_one_round_is_not_called_a_median() -> None:
    table = rounds.table(
        [[measured(Variant("m"), 1.0, 100)]], rounds.overhead([[measured(Variant("m"), 1.0, 1)]])
    )
    assert table.header[-2] == "speed against the first, one round"
    assert table.rows[0][-2].text == "1.00"
    assert not re.search(r"median|least|min\b|max\b", table.markdown())


def test_sgdpos_overhead_is_a_share_of_the_step() -> None:
    """0.5 ms more in a step of 1 s is 0.05 %."""
    (line,) = rounds.overhead([[measured(Variant("m"), 1.0, 1)]])
    assert "0.050 % of a step of 1,000 ms" in line


def test_neighbours_differ_from_the_base_by_one_thing() -> None:
    """Padded rows come with a dense head: that is how padding trainers work."""
    variants = around(Variant("m"), ["float32", "bf16"])
    assert len(variants) == len({v.name for v in variants}) == 16
    for variant in variants[1:8]:
        assert (
            sum(a != b for a, b in zip(vars(variant).values(), vars(variants[0]).values(), strict=True)) <= 2
        )


@pytest.mark.proof
def test_the_command_line_measures_in_processes_and_writes_a_table(
    folder, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(cli, "around", lambda base, precisions: [base])
    out = tmp_path / "out"
    cli.measure(parse(["--model", folder, "--steps", "1", "--rounds", "1", "--max-length", "60", "--out", str(out),
              "--precisions", "float32"]))  # fmt: skip
    text = (out / "bench.md").read_text()
    assert "shared prefix, cached, chunked, sgdpo, float32" in text
    assert f'`make bench BENCH="--model {folder} --steps 1' in text
    assert "4 pairs a step, 1 timed steps" in text
    pilots = Table.read(out / "pilots.json")
    assert [row[0].text for row in pilots.rows] == sorted(
        path.stem for path in (CONF / "pilot").glob("*.yaml")
    )
    looks = {row[0].text: (row[2].value != 0, row[3].value != 0) for row in pilots.rows}
    assert (looks["uniform"], looks["entropy"], looks["shared"]) == (
        (False, False),
        (True, False),
        (False, True),
    )
    methods = {row[0].text: row[2].value != 0 for row in Table.read(out / "methods.json").rows}
    assert set(methods) == {*PREFERENCE, "dpo, entropy logged"}
    assert {name for name, heavier in methods.items() if heavier} == {"wpo", "dpo, entropy logged"}
    assert "pairs/s" in capsys.readouterr().out


def test_a_missing_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no model in nowhere; run `make smollm2`"):
        cli.measure(parse(["--model", "nowhere"]))


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("echo out of memory >&2; exit 1", r"\nout of memory"),
        ("echo 50% of the steps >&2; kill -KILL $$", r" its process was killed by SIGKILL \(out of memory"),
    ],
)
def test_a_failing_measurement_says_why(tmp_path, monkeypatch, ends: str, said: str) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\n{ends}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(rounds.sys, "executable", str(interpreter))
    with pytest.raises(ValueError, match=f"measuring 'shared prefix, .*' failed:{said}"):
        rounds.run_rounds([Variant("m")], fixed_lengths(4, 3, 2, 100, seed=0), 1)


def test_a_scaling_plot_is_a_picture_with_its_numbers_beside_it(tmp_path) -> None:
    points = [{"x": x, "series": "s", "pairs_per_second": 1 / x, "memory_mb": x} for x in (1, 2)]
    cli.draw(points, "memory_mb", ("x", "y"), tmp_path / "plot.png", "a note")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert '"memory_mb": 2' in (tmp_path / "plot.json").read_text()


@pytest.mark.slow
def test_a_profile_is_kept(folder, tmp_path, capsys) -> None:
    cli.measure(
        parse(["--model", folder, "--profile", "--steps", "1", "--max-length", "60", "--out", str(tmp_path)])
    )
    said = " ".join(capsys.readouterr().out.split())  # a title as long as this breaks where its table ends
    for stem in ("bench_profile", "bench_profile-bf16"):
        table = Table.read(tmp_path / f"{stem}.json")
        assert "matrix products" in [row[0].text for row in table.rows]
        assert table.title in said
        assert (tmp_path / f"{stem}-operators.md").is_file()


def test_every_table_says_its_commit_and_what_the_readme_links_to_is_published(
    folder, tmp_path, monkeypatch
) -> None:
    """What is measured is made up; what is written is not."""
    theirs = {"seconds": [1.0], "memory_mb": 1.0, "versions": {"trl": "1"}}
    part = Table("", "One step", ["part", "share"], [["a", "1"]])
    for module, name, made in (
        (rounds, "run_rounds", lambda variants, *_: [[measured(variant, 1.0, 100)] for variant in variants]),
        (added, "_names", {"pilot": ["uniform"], "method": ["dpo"]}.get),
        (added, "_best", lambda works, repeats: [1.0] * len(works)),
        (cli, "profile_step", lambda variant, examples: [part]),
        (peers, "peer_python", lambda folder: folder),
        (peers, "compare", lambda python, variants, *_: [[(measured(v, 1.0, 1), theirs)] for v in variants]),
    ):
        monkeypatch.setattr(module, name, made)
    for way in ((), ("--profile",), ("--peers",)):
        cli.measure(parse(["--model", folder, "--max-length", "60", "--out", str(tmp_path / "bench"), *way]))
    names = {path.name for path in publish(tmp_path)}
    linked = re.findall(r"published/(bench\w*\.md)", (ROOT / "README.md").read_text())
    assert {"pilots.md", "methods.md", "bench_peers.md", "bench_profile.md", *linked} <= names


def test_on_a_gpu_what_is_not_given_is_chosen():
    options = parse(["--gpu", "--batch=2", "--steps", "1", "--precisions", "float32"])
    assert (options.target, options.words[:3]) == ("bench-gpu", ["--batch=2", "--steps", "1"])
    given = {"batch": 2, "steps": 1, "precisions": ["float32"]}
    assert {key: getattr(options, key) for key in ON_A_GPU} == ON_A_GPU | given
    assert parse([]).device == "cpu"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--peers --profile", "--peers and --profile: each is a measurement of its own"),
        ("--scaling --data pairs.jsonl", "leave --data out"),
    ],
)
def test_what_would_be_passed_over_is_refused(words: str, said: str, capsys) -> None:
    with pytest.raises(Failure, match="2"):
        parse(words.split())
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_its_benchmark_is_skipped_and_said_so(capsys):
    cli.measure(parse(["--gpu"]))
    assert "skipped: torch finds no CUDA device" in capsys.readouterr().out
    with pytest.raises(ValueError, match="device=cuda, but 0 CUDA devices are visible"):
        cli.measure(parse(["--device", "cuda"]))


def test_random_weights_are_written_once_where_trl_can_load_them(tmp_path: Path):
    model = {**cli.VOCABULARY_MODEL, "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 1}
    folder = write_random(model, tmp_path / "random")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert write_random(model, folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, random_model(model).lm_head.weight)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"
