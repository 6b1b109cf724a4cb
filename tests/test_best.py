"""The selection of table 1: which ratios are best, and whether noise alone could have put them there."""

import json

import pytest

from lab.sweeps.best import best_ratios, metrics_of, render_best, write_best
from lab.sweeps.heatmap import draw_experiment
from report_fixtures import write_run

MARGINS = "eval/rewards/margins"


def write_margins(outputs, ratio, values, method="sgdpo"):
    """Write one run a seed whose final evaluation margin is the given value."""
    for seed, value in enumerate(values):
        folder = write_run(outputs, "grid", method, seed=seed, ratio=ratio, evaluated=False)
        record = json.loads((folder / "record.json").read_text())
        record["final"]["eval"]["rewards/margins"] = value
        (folder / "record.json").write_text(json.dumps(record))


class TestSelection:
    def test_mean_standard_error_and_paired_test_over_seeds(self, tmp_path):
        """Best 2, 3, 4: mean 3, sample deviation 1, standard error 1/sqrt(3).

        Less the runner-up 1, 2.5, 2.5, seed by seed: 1, 0.5, 1.5; mean 1, deviation 0.5, so t = 1 / (0.5 / sqrt(3))
        = 3.4641 on 2 degrees of freedom. There the two-sided p is 1 - t / sqrt(t^2 + 2) = 1 - 3.4641 / 3.7417 = 0.0742.
        """
        write_margins(tmp_path, (0.6, 0.9), [2.0, 3.0, 4.0])
        write_margins(tmp_path, (0.7, 0.9), [1.0, 2.5, 2.5])
        write_margins(tmp_path, (1.0, 1.0), [0.0, 0.0, 0.0])
        write_margins(tmp_path, None, [1.0, 2.0, 3.0], method="dpo")
        (finding,) = best_ratios(tmp_path, "grid", MARGINS)
        assert (finding["best"]["chosen"], finding["best"]["rejected"]) == (0.6, 0.9)
        assert finding["best"]["mean"] == pytest.approx(3.0)
        assert finding["best"]["error"] == pytest.approx(3**-0.5)
        assert (finding["runner_up"]["chosen"], finding["difference"]) == (0.7, pytest.approx(1.0))
        assert finding["p_value"] == pytest.approx(0.0742, abs=1e-4)
        assert finding["verdict"].startswith("the best does not differ from the runner-up beyond noise")
        assert finding["best_against_dpo"]["difference"] == pytest.approx(1.0)

    def test_beyond_noise(self, tmp_path):
        """Differences 1.0, 1.1, 0.9: t = 1 / (0.1 / sqrt(3)) = 17.32; p = 1 - 17.32 / sqrt(300 + 2) = 0.0033."""
        write_margins(tmp_path, (0.6, 0.9), [2.0, 3.1, 3.9])
        write_margins(tmp_path, (0.7, 0.9), [1.0, 2.0, 3.0])
        (finding,) = best_ratios(tmp_path, "grid", MARGINS)
        assert finding["p_value"] == pytest.approx(0.0033, abs=1e-4)
        assert finding["verdict"].startswith(
            "the best differs from the runner-up beyond noise (paired over seeds"
        )

    def test_one_seed_cannot_tell(self, tmp_path):
        write_margins(tmp_path, (0.6, 0.9), [2.0])
        write_margins(tmp_path, (0.7, 0.9), [1.0])
        (finding,) = best_ratios(tmp_path, "grid", MARGINS)
        assert finding["p_value"] is None
        assert "run more seeds" in finding["verdict"]

    def test_win_rates_are_paired_over_prompts(self, tmp_path):
        """60 % is 40 wins and 160 ties of 200 prompts, 52 % is 8 and 192: 32 prompts differ, all one way.

        Sign test: p = 2 * 0.5^32 = 4.7e-10. The difference is 40 * 0.5 / 200 - 8 * 0.5 / 200 = 8 points.
        """
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.6, 0.9), quality=60.0)
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.7, 0.9), quality=52.0)
        (finding,) = best_ratios(tmp_path, "grid", "verifiable-checker:win_rate")
        assert finding["paired_over"] == "prompts"
        assert finding["difference"] == pytest.approx(8.0)
        assert finding["p_value"] == pytest.approx(2 * 0.5**32)

    def test_a_loss_is_better_when_lower(self, tmp_path):
        for ratio, loss in (((0.6, 0.9), 0.7), ((0.7, 0.9), 0.5)):
            folder = write_run(tmp_path, "grid", "sgdpo", ratio=ratio)
            record = json.loads((folder / "record.json").read_text())
            record["final"]["eval"]["loss"] = loss
            (folder / "record.json").write_text(json.dumps(record))
        (finding,) = best_ratios(tmp_path, "grid", "eval/loss")
        assert [row["chosen"] for row in finding["ranking"]] == [0.7, 0.6]

    def test_each_model_is_selected_for_on_its_own(self, tmp_path):
        for model in ("tiny_llama", "tiny_qwen2"):
            write_run(tmp_path, "grid", "sgdpo", model, ratio=(0.6, 0.9))
        assert [f["model"] for f in best_ratios(tmp_path, "grid", MARGINS)] == ["tiny_llama", "tiny_qwen2"]


class TestOutput:
    def test_json_and_markdown_name_best_dpo_and_cells_without_the_metric(self, tmp_path):
        write_margins(tmp_path, (0.6, 0.9), [2.0, 3.0])
        write_margins(tmp_path, (0.7, 0.9), [1.0, 1.0])
        write_margins(tmp_path, None, [0.5, 0.5], method="dpo")
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.8, 0.9), status="failed", error="killed")
        findings = best_ratios(tmp_path, "grid", MARGINS)
        text = render_best(findings)
        assert "| 1 | 0.6 | 0.9 | 2.5 | 0.5 | 2 |" in text
        assert "| DPO | – | – | 0.5 | 0 | 2 |" in text
        assert "Best: ratio.chosen=0.6 ratio.rejected=0.9" in text
        assert "Without this metric: (0.8, 0.9)." in text
        written = write_best(findings, tmp_path / "grid")
        assert [path.name for path in written] == ["best.json", "best.md"]
        assert json.loads(written[0].read_text()) == findings

    def test_the_heat_map_is_drawn_beside_the_records(self, tmp_path):
        write_margins(tmp_path, (0.6, 0.9), [2.0])
        write_margins(tmp_path, (0.7, 0.9), [1.0])
        write_margins(tmp_path, None, [0.5], method="dpo")
        pictures = draw_experiment(tmp_path, "grid", MARGINS)
        assert {path.suffix for path in pictures} == {".png", ".svg"}
        assert all(path.parent == tmp_path / "grid" and path.stat().st_size > 1000 for path in pictures)
        assert "DPO 0.5" in next(path for path in pictures if path.suffix == ".svg").read_text()


class TestBadInput:
    def test_no_records_name_the_command_that_makes_them(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no runs of experiment 'grid'.*sweep=ratio_grid experiment=grid"
        ):
            best_ratios(tmp_path, "grid", MARGINS)

    def test_an_unknown_metric_lists_those_that_exist(self, tmp_path):
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.6, 0.9))
        with pytest.raises(
            ValueError, match=r"has the metric 'eval/margin'; there are: eval/loss, .*:win_rate"
        ):
            best_ratios(tmp_path, "grid", "eval/margin")

    def test_an_experiment_without_ratios(self, tmp_path):
        write_run(tmp_path, "grid", "dpo")
        with pytest.raises(ValueError, match="has no runs with ratios"):
            best_ratios(tmp_path, "grid", MARGINS)

    def test_metrics_of_leaves_out_text(self, tmp_path):
        from sgdpo.runs.records import read_runs

        write_run(tmp_path, "grid", "sgdpo", ratio=(0.6, 0.9))
        names = metrics_of(read_runs(tmp_path, "grid"))
        assert "verifiable-checker:samples" not in names
        assert {"verifiable-checker:win_rate", MARGINS} <= set(names)
