"""Which cells a sweep has, and which sweeps are refused before anything starts."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from lab.sweeps.cells import SweepError, expand, label_cells, label_runs
from sgdpo.config.compose import list_errors
from sgdpo.store import write_json
from sweep_fixtures import cells_of, composer_for


def expanded(params, also=(), arguments=()):
    return expand(params, also, arguments, OverridesParser.create())


def ratios(cells):
    return [(c.config.method["name"], c.config.ratio.chosen, c.config.ratio.rejected) for c in cells]


class TestGrids:
    def test_the_ratio_grid_is_25_cells_of_sgdpo_and_dpo_beside_them(self):
        cells = cells_of("sweep=ratio_grid")
        values = (0.6, 0.7, 0.8, 0.9, 1.0)
        assert ratios(cells) == [("sgdpo", c, r) for c in values for r in values] + [("dpo", None, None)]
        assert {cell.config.experiment for cell in cells} == {"ratio_grid"}

    def test_the_command_line_wins_and_reaches_the_grids_that_name_the_key(self):
        """Two chosen ratios x one rejected x three seeds are 6 cells of SGDPO; DPO takes the seeds alone."""
        arguments = (
            "sweep=ratio_grid",
            "model=tiny_qwen2",
            "seed=0,1,2",
            "ratio.chosen=0.6,0.8",
            "ratio.rejected=1.0",
        )
        cells = cells_of(*arguments)
        assert sorted(set(ratios(cells)), key=str) == [
            ("dpo", None, None),
            ("sgdpo", 0.6, 1.0),
            ("sgdpo", 0.8, 1.0),
        ]
        assert len(cells) == 9
        assert {cell.config.model.name for cell in cells} == {"tiny_qwen2"}
        assert {cell.config.seed for cell in cells} == {0, 1, 2}

    @pytest.mark.parametrize(
        ("sweep", "number"),
        [("ratio_diagonal", 6), ("methods", 7), ("seeds", 5), ("learning_rate", 10), 
         ("table3", 14), ("table4", 2), ("figure2", 6), ("figure3", 10)],
    )  # fmt: skip
    def test_every_named_sweep_is_valid(self, sweep, number):
        """figure3: 5 over chosen and 5 over rejected share the cell (0.6, 0.9), and DPO: 5 + 5 - 1 + 1."""
        cells = cells_of(f"sweep={sweep}")
        assert len(cells) == number
        assert {cell.config.experiment for cell in cells} == {sweep}

    def test_a_diagonal_gives_each_cell_its_own_other_ratio(self):
        chosen = ratios(cells_of("sweep=ratio_diagonal", "ratio.chosen=0.3,0.5"))
        assert chosen == [("sgdpo", 0.3, 0.3), ("sgdpo", 0.5, 0.5), ("dpo", None, None)]

    def test_a_range_counts_in_the_decimals_that_were_typed(self):
        cells = cells_of("method=sgdpo", "ratio.chosen=range(0.6,1.0,0.1)", "ratio.rejected=1.0")
        assert [chosen for _, chosen, _ in ratios(cells)] == [0.6, 0.7, 0.8, 0.9]
        assert all("99999" not in cell.name and "0000" not in cell.name for cell in cells)
        assert [c.config.seed for c in cells_of("seed=range(3,0,-1)")] == [3, 2, 1]

    def test_the_name_of_a_run_holds_the_swept_key(self):
        cells = cells_of("method=dpo,ipo", "optimizer.lr=1e-4,2e-4", "seed=1,2")
        assert {cell.name.rsplit("-", 1)[0] for cell in cells} >= {
            "dpo-tiny_llama-verifiable-lr0.0001-s1", "ipo-tiny_llama-verifiable-lr0.0002-s2"}  # fmt: skip
        assert "-lr" not in cells_of("optimizer.lr=1e-4", "seed=1,2")[0].name

    def test_a_cell_that_two_grids_share_is_there_once(self):
        """(0.6, 0.9) lies on both lines of figure 3."""
        assert ratios(cells_of("sweep=figure3")).count(("sgdpo", 0.6, 0.9)) == 1

    def test_labels_name_what_differs(self):
        batch = [
            ["sweep=a", "seed=1", "method=dpo", "n_jobs=2"],
            ["sweep=a", "seed=2", "method=dpo", "n_jobs=2"],
        ]
        assert label_cells(batch) == ["seed=1", "seed=2"]
        mixed = [["method=mix", f"method.parts=[{{method:dpo,weight:{w}}}]", "a=${b}"] for w in (1, 2)]
        assert label_cells(mixed) == [parts for _, parts, _ in mixed]
        assert label_runs(mixed) == ["parts_method_dpo_weight_1", "parts_method_dpo_weight_2"]
        follows = [
            ["noise=0.2", "flips=${noise}"],
            ["noise=0.4", "flips=${noise}"],
            ["noise=0.4", "flips=0.1"],
        ]
        assert label_runs(follows) == ["noise0.2", "noise0.4", "noise0.4-flips0.1"]


class TestComposer:
    @pytest.mark.parametrize("overrides", [
        ["sweep=ratio_grid", "method=sgdpo", "ratio.chosen=0.7", "optimizer.lr=1e-6", "seed=3"],
        ["method=dpo", "model=tiny_qwen2", "data.limit=null", "++optimizer.sft.max_steps=2"],
        ["model=smollm2_135m", "optimizer=tiny", "tracking.tags=[a]", "experiment=e"],
    ])  # fmt: skip
    def test_sharing_a_composition_gives_what_hydra_gives(self, overrides):
        """Oracle: Hydra's own load_sweep_config, cell by cell."""
        composer = composer_for()
        composer.compose([*overrides, "seed=11"])  # a cell of the same groups before it must leave no trace
        hydra_config = composer.loader.load_sweep_config(composer.master, overrides)
        with open_dict(hydra_config):
            del hydra_config["hydra"]
        ours = composer.compose(overrides)
        assert OmegaConf.to_container(ours, resolve=True) == OmegaConf.to_container(
            hydra_config, resolve=True
        )


class TestRefused:
    def refused(self, *arguments: str) -> str:
        with pytest.raises(SweepError) as error:
            cells_of.__wrapped__(*arguments)  # past its cache: the records may have changed
        return str(error.value)

    def test_every_invalid_cell_is_listed_at_once(self):
        message = self.refused("method=sgdpo", "ratio.chosen=0.6,2,3", "seed=0,1")
        assert "the sweep of 6 cells is not valid, and nothing was started" in message
        for cell in ("2 seed=0", "2 seed=1", "3 seed=0", "3 seed=1"):
            assert f"in ratio.chosen={cell}" in message
        assert "in ratio.chosen=0.6" not in message

    def test_a_sweep_over_ratios_of_a_method_that_takes_none(self):
        assert "method 'dpo' takes no ratio, but ratio.chosen is set" in self.refused(
            "method=dpo", "ratio.chosen=0.6,0.7"
        )

    def test_a_sweep_over_a_key_that_does_not_matter(self):
        message = self.refused("method=sft", "optimizer.preference.lr=1e-6,1e-5")
        assert "a sft run does not depend on optimizer.preference.lr" in message
        assert "1e-06   and   optimizer.preference.lr=1e-05" in message.replace("1e-6", "1e-06").replace(
            "1e-5", "1e-05"
        )

    def test_an_error_of_many_cells_is_shown_for_a_few(self):
        message = self.refused("seed=range(0,40)", "method=dpo", "ratio.chosen=2.0")
        assert message.count("\n      in ") == 12
        assert "and in 28 more" in message

    def test_one_cell_twice(self):
        assert "the same cell is there twice" in self.refused("seed=1,2,1")

    @pytest.mark.parametrize(
        ("argument", "words"),
        [("modle=a,b", "unknown key 'modle': did you mean model"),
         ("ratio.choosen=0.6,0.7", "unknown key 'ratio.choosen': did you mean ratio.chosen?"),
         ("optimizer.lrr=1,2", "did you mean optimizer.lr?"), ("seed=interval(0,1)", "give some: a,b,c or a range"),
         ("seed=range(0,100000000)", "has 100,000,000 cells"), ("seed=range(0,3,0)", "a step that is not 0"),
         ("optimizer.lr=range(0,inf)", "finite numbers"), ("model=nope,tiny_llama", "Could not find 'model/nope'"),
         ("+typo=1,2", "unknown key 'typo'"), ("experiment=a,b", "experiment must be one for all cells"),
         ("label=a,b", "does not depend on label, so")],
    )  # fmt: skip
    def test_unknown_groups_keys_and_two_experiments(self, argument, words):
        message = self.refused(argument)
        assert words in message
        assert "search path" not in message.lower()

    def test_a_cell_that_reaches_into_a_mapping_that_its_groups_leave_null(self):
        message = self.refused("model=tiny_llama,smollm2_135m", "model.tiny.hidden_size=32,64")
        assert (
            "  - model.tiny is null here, with nothing in it to set; it is there with model=tiny_llama"
            in message
        )
        assert message.count("\n      in model=smollm2_135m") == 2

    def test_a_list_for_a_single_value_says_comma_string(self):
        assert "write a comma string: seed=0,1" in self.refused("seed=[0,1],2")

    @pytest.mark.parametrize(
        ("word", "advice"),
        [
            ("seed=[0,1]", "seed=0,1"),
            ("ratio.chosen=[0.6,0.8]", "ratio.chosen=0.6,0.8"),
            ("method=[dpo,ipo]", "dpo,ipo"),
        ],
    )
    def test_a_list_on_the_command_line_says_comma_string(self, word, advice):
        (error,) = list_errors(["-m", word, "model=tiny_llama"])
        assert f"takes one value, and a list is not swept over; write {word.split('=')[0]}=" in error
        assert advice in error

    def test_a_list_where_one_belongs_or_nothing_is_known_is_left_to_hydra(self):
        assert (
            list_errors(["optimizer.typo=[1]", "seed=[1", "hydra.verbose=[a]", "tracking.tags=[a,b]"]) == []
        )

    def test_hydras_sweeps_that_hold_a_list_are_left_to_the_cells(self):
        words = [
            "adapter.targets=[q_proj],[q_proj,v_proj]",
            "method=glob(*,exclude=[sft,mix])",
            "seed=[0,1],2",
        ]
        assert list_errors(["-m", *words]) == []

    def test_a_file_that_is_not_there_is_said_of_every_cell(self):
        message = self.refused("data=local", "data.train=a.jsonl,b.jsonl")
        for file in ("a.jsonl", "b.jsonl"):
            assert f"{file} does not exist" in message
            assert f"\n      in data.train={file}" in message

    def test_a_yaml_list_says_comma_string(self):
        with pytest.raises(SweepError, match=r'params: ratio.chosen is a YAML list.*ratio.chosen: "0.6,0.7"'):
            expanded({"ratio.chosen": [0.6, 0.7]})
        with pytest.raises(SweepError, match=r"also\[0\]: seed is a YAML list"):
            expanded({"seed": "1"}, [{"seed": [2, 3]}])

    @pytest.mark.parametrize("value", [None, "", " "])
    def test_a_key_without_values(self, value):
        with pytest.raises(SweepError, match="seed names no value, so the grid is empty"):
            expanded({"seed": value})

    def test_an_empty_grid(self):
        with pytest.raises(SweepError, match="the grid is empty"):
            expanded({}, [], ["sweep=mine", "model=tiny_llama"])
        with pytest.raises(SweepError, match="the grid is empty"):
            expanded({"seed": "range(3,3)"})

    def test_a_record_of_another_version(self, tmp_path):
        arguments = ("method=dpo", "seed=1,2", f"outputs={tmp_path}")
        folder = cells_of(*arguments)[1].folder
        folder.mkdir(parents=True)
        write_json(folder / "record.json", {"format": 99})
        message = self.refused(*arguments)
        assert "has format 99, this code reads format 1" in message
        assert folder.name in message
