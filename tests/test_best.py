"""What came out of a sweep: its results, which setting is best, and whether noise alone could have put it there."""

import json
from unittest.mock import Mock

import pytest
import wandb
import yaml

from lab.report.names import metric_title
from lab.sweeps import results
from lab.sweeps.results import (
    draw_experiment,
    experiment_results,
    find_best,
    metrics_of,
    render_best,
    send_pictures,
    write_best,
)
from report_fixtures import write_run
from sgdpo.places import CONF

MARGINS = "eval/rewards/margins"


def ratio_of(row):
    """Only what was swept is told: 0.9 is every run's."""
    return row["setting"]["ratio.chosen"], row["setting"].get("ratio.rejected", 0.9)


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
        (finding,) = find_best(tmp_path, "grid", MARGINS)
        assert ratio_of(finding["best"]) == (0.6, 0.9)
        assert finding["best"]["mean"] == pytest.approx(3.0)
        assert finding["best"]["error"] == pytest.approx(3**-0.5)
        assert ratio_of(finding["runner_up"]) == (0.7, 0.9)
        assert finding["runner_up"]["difference"] == pytest.approx(1.0)
        assert finding["runner_up"]["p_value"] == pytest.approx(0.0742, abs=1e-4)
        assert finding["verdict"].startswith("the best does not differ from the runner-up beyond noise")
        (dpo,) = finding["beside"]
        assert (dpo["setting"]["method"], dpo["difference"]) == ("dpo", pytest.approx(1.0))

    def test_beyond_noise(self, tmp_path):
        """Differences 1.0, 1.1, 0.9: t = 1 / (0.1 / sqrt(3)) = 17.32; p = 1 - 17.32 / sqrt(300 + 2) = 0.0033."""
        write_margins(tmp_path, (0.6, 0.9), [2.0, 3.1, 3.9])
        write_margins(tmp_path, (0.7, 0.9), [1.0, 2.0, 3.0])
        (finding,) = find_best(tmp_path, "grid", MARGINS)
        assert finding["runner_up"]["p_value"] == pytest.approx(0.0033, abs=1e-4)
        assert finding["verdict"].startswith(
            "the best differs from the runner-up beyond noise (paired over seeds"
        )

    def test_a_setting_that_is_left_with_fewer_seeds_is_named_and_not_ranked(self, tmp_path):
        """Its only seed is the luckiest of all; on one seed each, nobody has fewer."""
        write_margins(tmp_path, (0.6, 0.9), [2.0, 3.0, 4.0])
        write_margins(tmp_path, (0.7, 0.9), [5.0])
        write_margins(tmp_path, (0.8, 0.9), [1.0, 2.5, 2.5])
        (finding,) = find_best(tmp_path, "grid", MARGINS)
        assert [ratio_of(row)[0] for row in finding["ranking"]] == [0.6, 0.8]
        assert [(ratio_of(row)[0], row["seeds"]) for row in finding["on_fewer_seeds"]] == [(0.7, 1)]
        assert "Not ranked, on fewer than 3 seeds: 0.7 (1: 5)." in render_best([finding])
        table = experiment_results(tmp_path, "grid", MARGINS).table()
        assert [row[0].text for row in table.rows] == ["0.6", "0.8", "0.7"]
        assert "held-out margin, those on fewer seeds below" in table.facts[0]

    def test_a_setting_and_a_metric_may_be_told_of_fewer_seeds_than_are_finished(self, tmp_path):
        write_run(tmp_path, "grid", "dpo", seed=42)
        write_run(tmp_path, "grid", "dpo", seed=43, evaluated=False)
        ((_, rate, margin, *_),) = experiment_results(tmp_path, "grid").table().rows
        assert (rate.note, margin.note) == ("1 of its 2 seeds have it", None)

    @pytest.mark.parametrize(
        ("key", "field", "values", "best"),
        [
            ("adapter.targets", "settings", [{"adapter": {"targets": [t]}} for t in "qv"], ["v"]),
            ("content of data.train", "contents", [{"data.train": "0" * 64}, {"data.train": "1" * 64}], "1" * 8),
            ("data.limit", "settings", [{"data": {"name": "verifiable", "limit": n}} for n in (9, None)], None),
        ],
        ids=["list", "content", "null"],
    )  # fmt: skip
    def test_whatever_tells_runs_of_one_seed_apart_is_a_key(self, tmp_path, key, field, values, best):
        """Two runs are not two seeds of one setting because the rows were edited between them."""
        for margin, value in enumerate(values):
            folder = write_run(tmp_path, "grid", "dpo", lr=1e-5 * (1 + margin), evaluated=False)
            record = json.loads((folder / "record.json").read_text())
            record["settings"]["optimizer"] = {}
            record["final"]["eval"]["rewards/margins"] = float(margin)
            record[field] = {**record.get(field, {}), **value}
            (folder / "record.json").write_text(json.dumps(record))
        (finding,) = find_best(tmp_path, "grid", MARGINS)
        assert (finding["keys"], finding["best"]["setting"][key], finding["beside"]) == ([key], best, [])
        assert [(row["mean"], row["seeds"]) for row in finding["ranking"]] == [(1.0, 1), (0.0, 1)]

    def test_one_seed_cannot_tell(self, tmp_path):
        write_margins(tmp_path, (0.6, 0.9), [2.0])
        write_margins(tmp_path, (0.7, 0.9), [1.0])
        (finding,) = find_best(tmp_path, "grid", MARGINS)
        assert finding["runner_up"]["p_value"] is None
        assert "run more seeds" in finding["verdict"]

    def test_win_rates_are_paired_over_prompts(self, tmp_path):
        """60 % is 40 wins and 160 ties of 200 prompts, 52 % is 8 and 192: 32 prompts differ, all one way.

        Sign flips: p = 2 * 0.5^32, below what 9,999 random ones can show. 40 * 0.5 / 200 - 8 * 0.5 / 200
        is 8 points.
        """
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.6, 0.9), quality=60.0)
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.7, 0.9), quality=52.0)
        (finding,) = find_best(tmp_path, "grid", "verifiable-checker:win_rate")
        assert finding["runner_up"]["paired_over"] == "prompts"
        assert finding["runner_up"]["difference"] == pytest.approx(8.0)
        assert finding["runner_up"]["p_value"] <= 1e-4

    def test_a_loss_is_better_when_lower(self, tmp_path):
        for ratio, loss in (((0.6, 0.9), 0.7), ((0.7, 0.9), 0.5)):
            folder = write_run(tmp_path, "grid", "sgdpo", ratio=ratio)
            record = json.loads((folder / "record.json").read_text())
            record["final"]["eval"]["loss"] = loss
            (folder / "record.json").write_text(json.dumps(record))
        (finding,) = find_best(tmp_path, "grid", "eval/loss")
        assert [ratio_of(row)[0] for row in finding["ranking"]] == [0.7, 0.6]

    @pytest.mark.parametrize("field", ["looping", "empty", "repetition", "constraint_rate"])
    @pytest.mark.parametrize("benchmark", ["constraints", "constraints_tuning"])
    def test_a_judged_number_is_better_the_way_its_benchmark_says(self, tmp_path, benchmark, field):
        for ratio, value in (((0.6, 0.9), 1.0), ((0.7, 0.9), 9.0)):
            folder = write_run(tmp_path, "grid", "sgdpo", ratio=ratio)
            record = json.loads((folder / "record.json").read_text())
            record["eval"] = {f"{benchmark}-checker": {field: value}}
            (folder / "record.json").write_text(json.dumps(record))
        metric = f"{benchmark}-checker:{field}"
        (finding,) = find_best(tmp_path, "grid", metric)
        assert ratio_of(finding["best"]) == ((0.7, 0.9) if field == "constraint_rate" else (0.6, 0.9))
        assert metric_title(metric) != metric, "a YAML that builds on another has its names too"

    def test_what_a_benchmark_says_of_its_numbers_is_of_numbers_that_it_has(self):
        for path in (CONF / "benchmark").glob("*.yaml"):
            said = yaml.safe_load(path.read_text())
            ways = said.get("better", {})
            assert ways.keys() <= said.get("metrics", {}).keys(), path.name
            assert set(ways.values()) <= {"higher", "lower"}, path.name

    def test_each_model_is_selected_for_on_its_own(self, tmp_path):
        for model in ("tiny_llama", "tiny_qwen2"):
            for ratio in ((0.6, 0.9), (0.7, 0.9)):
                write_run(tmp_path, "grid", "sgdpo", model, ratio=ratio)
        findings = find_best(tmp_path, "grid", MARGINS)
        assert sorted(f["where"]["model"] for f in findings) == ["tiny_llama", "tiny_qwen2"]


class TestOutput:
    def test_json_and_markdown_name_best_dpo_and_cells_without_the_metric(self, tmp_path):
        write_margins(tmp_path, (0.6, 0.9), [2.0, 3.0])
        write_margins(tmp_path, (0.7, 0.9), [1.0, 1.0])
        write_margins(tmp_path, None, [0.5, 0.5], method="dpo")
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.8, 0.9), status="failed", error="killed")
        findings = find_best(tmp_path, "grid", MARGINS)
        text = render_best(findings)
        assert "| 1 | 0.6 | 2.5 | 0.5 | 2 |" in text
        assert "| dpo | – | 0.5 | 0 | 2 |" in text
        assert "Best: ratio.chosen=0.6" in text
        assert "Without this metric: 0.8." in text
        written = write_best(findings, tmp_path / "grid")
        assert [path.name for path in written] == ["best.json", "best.md"]
        assert json.loads(written[0].read_text()) == findings

    def test_the_heat_map_is_drawn_beside_the_records(self, tmp_path):
        write_margins(tmp_path, (0.6, 0.9), [2.0])
        write_margins(tmp_path, (0.7, 0.9), [1.0])
        write_margins(tmp_path, None, [0.5], method="dpo")
        pictures = draw_experiment(tmp_path, "grid", MARGINS)
        assert {path.suffix for path in pictures} >= {".png", ".svg"}
        assert all(path.parent == tmp_path / "grid" and path.stat().st_size > 100 for path in pictures)
        assert "DPO 0.5" in next(path for path in pictures if path.suffix == ".svg").read_text()
        with pytest.raises(ValueError, match=r"has the metric 'eval/typo'; there are: eval/loss"):
            draw_experiment(tmp_path, "grid", "eval/typo")
        assert {path.stem for path in pictures} == {"heatmap"}, "an exhibit's files may lie there"

    def test_pictures_are_kept_offline_if_no_server_answers(self, tmp_path, monkeypatch):
        def init(mode, **settings):
            if mode == "online":
                raise wandb.errors.CommError("Timed out")
            return Mock()

        monkeypatch.setattr(results, "choose_mode", lambda wanted: "online")
        monkeypatch.setattr(wandb, "init", init)
        monkeypatch.setattr(wandb, "teardown", Mock())
        assert send_pictures([tmp_path / "map.svg"], "grid", MARGINS) == "offline"


class TestBadInput:
    def test_no_records_name_the_command_that_makes_them(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no runs of experiment 'grid'.*sweep=ratio_grid experiment=grid"
        ):
            find_best(tmp_path, "grid", MARGINS)

    def test_an_unknown_metric_lists_those_that_exist(self, tmp_path):
        write_run(tmp_path, "grid", "sgdpo", ratio=(0.6, 0.9))
        with pytest.raises(
            ValueError, match=r"has the metric 'eval/margin'; there are: eval/loss, .*:win_rate"
        ):
            find_best(tmp_path, "grid", "eval/margin")

    def test_what_was_not_swept_cannot_be_selected(self, tmp_path):
        write_run(tmp_path, "grid", "dpo")
        with pytest.raises(ValueError, match="was not swept over method; it was over nothing but seeds"):
            find_best(tmp_path, "grid", MARGINS)
        write_run(tmp_path, "grid", "ipo")
        with pytest.raises(ValueError, match=r"was not swept over ratio\.chosen; it was over method"):
            find_best(tmp_path, "grid", MARGINS, ["ratio.chosen"])

    def test_metrics_of_leaves_out_text(self, tmp_path):
        from sgdpo.runs.records import read_runs

        write_run(tmp_path, "grid", "sgdpo", ratio=(0.6, 0.9))
        names = metrics_of(read_runs(tmp_path, "grid"))
        assert "verifiable-checker:samples" not in names
        assert {"verifiable-checker:win_rate", MARGINS} <= set(names)


class TestResults:
    def table(self, outputs, metric=None):
        table = experiment_results(outputs, "grid", metric).table()
        return table.header, [[entry.text for entry in row] for row in table.rows], table

    def test_a_record_that_cannot_be_read_is_left_out_with_a_word(self, tmp_path):
        write_run(tmp_path, "grid", "dpo")
        broken = write_run(tmp_path, "grid", "sgdpo", ratio=(0.6, 0.9))
        (broken / "record.json").write_text("{")
        _, rows, table = self.table(tmp_path)
        assert len(rows) == 1
        assert f"The record of {broken.name} cannot be read: it is left out." in table.console()

    def test_any_key_that_was_swept_is_a_column_and_seeds_are_folded(self, tmp_path):
        """Win rates: DPO's 52 and SGDPO's 58 plus a tenth of the seed above 42: means 52.05 and 58.05, error 0.05."""
        for method in ("dpo", "sgdpo"):
            for lr in (1e-5, 2e-5):
                for seed in (42, 43):
                    write_run(tmp_path, "grid", method, lr=lr, seed=seed)
        header, rows, table = self.table(tmp_path)
        assert header[:3] == ["method", "optimizer.lr", "win rate over the SFT start, %"]
        assert "held-out margin" in header
        assert [row[0] for row in rows] == ["sgdpo", "sgdpo", "dpo", "dpo"]
        assert {row[1] for row in rows} == {"1e-05", "2e-05"}
        assert rows[0][2] == "58.05 ± 0.05"
        assert {row[-1] for row in rows} == {"2"}
        assert [path.suffix for path in table.write(tmp_path)] == [".md", ".tex", ".csv", ".json"]

    def test_the_metric_that_is_asked_for_comes_first_and_sorts_a_loss_upwards(self, tmp_path):
        for method, loss in (("dpo", 0.7), ("ipo", 0.5), ("nca", 0.6)):
            folder = write_run(tmp_path, "grid", method)
            record = json.loads((folder / "record.json").read_text())
            record["final"]["eval"]["loss"] = loss
            (folder / "record.json").write_text(json.dumps(record))
        header, rows, _ = self.table(tmp_path, "eval/loss")
        assert header[1] == "held-out loss"
        assert [row[0] for row in rows] == ["ipo", "nca", "dpo"]

    def test_only_seeds_and_runs_that_are_not_finished(self, tmp_path):
        write_run(tmp_path, "grid", "dpo", seed=42)
        write_run(tmp_path, "grid", "dpo", seed=43, status="failed", error="killed")
        _, rows, table = self.table(tmp_path)
        assert (len(rows), rows[0][0], rows[0][-1]) == (1, "all runs", "1")
        assert "1 runs are not finished" in " ".join(table.facts)
