"""The local report: one file that loads nothing, shows every run, and shows text of models as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.report.exhibit import standing
from lab.report.names import headline
from lab.report.page import ASSETS, POINTS, TEXT_BUDGET, describe, script_json, thin, write_page
from lab.report.tables import table3
from lab.sweeps.results import experiment_results
from report_fixtures import grid_runs, table3_runs, write_run
from sgdpo.places import CONF
from sgdpo.runs.records import read_runs, view_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def outputs(tmp_path):
    """Runs of table 3 and of a grid, a torn record, and one run whose texts and error hold markup."""
    table3_runs(tmp_path)
    grid_runs(tmp_path, seeds=(42,))
    folder = write_run(tmp_path, "hostile", "sgdpo", ratio=(0.6, 0.9))
    tokens = [
        {"token": ATTACK, "reward": 0.5, "pilot": True},
        {"token": " b", "reward": -0.1, "pilot": False},
    ]
    pair = {"prompt": ATTACK, "chosen": tokens, "rejected": tokens}
    (folder / "pairs.json").write_text(json.dumps({"pairs": [pair]}))
    sample = {"prompt_id": "0", "prompt": ATTACK, "response": ATTACK, "score": 3.0}
    (folder / "eval" / "verifiable-checker" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    write_run(tmp_path, "hostile", "dpo", status="failed", error=ATTACK)
    (tmp_path / "hostile" / "torn").mkdir()
    (tmp_path / "hostile" / "torn" / "record.json").write_text("{")
    table3(read_runs(tmp_path, "table3")).write(tmp_path / "table3")
    return tmp_path


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_every_run_with_its_curves_and_settings(outputs):
    page = data_of(write_page(outputs).read_text())
    runs = {(run["experiment"], run["name"]): run for run in page["runs"]}
    assert len(runs) == len(read_runs(outputs))
    run = runs["table3", "dpo-tiny_llama-verifiable-lr2e-05-s42"]
    assert run["settings"]["optimizer.lr"] == 2e-5
    assert len(run["curves"]["rewards/chosen"]["x"]) == 20
    assert run["held"]["rewards/chosen"]["x"] == [10.0, 20.0]
    assert run["eval"]["verifiable-checker"]["win_rate"] == 52.0
    assert {"name": "metrics.jsonl", "href": f"../table3/{run['name']}/metrics.jsonl"} in run["files"]
    assert runs["hostile", "torn"]["status"] == "broken"
    assert "not JSON" in runs["hostile", "torn"]["error"]


def test_nothing_is_loaded_from_anywhere(outputs):
    page = write_page(outputs).read_text()
    assert "default-src 'none'" in page
    loaded = re.findall(
        r"""<(?:link|iframe|object)\b|@import|url\(|src=["'](?!data:)""", page.split('id="data"')[0]
    )
    assert loaded == []
    code = page.rsplit("<script>", 1)[1]
    assert not re.search(r"fetch\(|XMLHttpRequest|innerHTML|insertAdjacentHTML|document\.write|eval\(", code)


def test_text_of_models_cannot_become_markup(outputs):
    page = write_page(outputs).read_text()
    assert "<script>document" not in page
    assert "<img src=x" not in page
    run = next(r for r in data_of(page)["runs"] if r["pairs"])
    assert run["pairs"][0]["prompt"] == ATTACK, "escaped on the way, whole at the end"
    assert run["samples"][0]["response"] == ATTACK


def test_json_in_a_script_element_cannot_end_it():
    text = script_json({"a": "</script><!-- & \u2028", "b": float("nan")})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028", "b": None}


def test_a_table_is_shown_as_it_was_written_and_published_copies_not_twice(outputs):
    (outputs / "published").mkdir()
    for path in (outputs / "table3").glob("table3.*"):
        shutil.copy(path, outputs / "published")
    table = table3(read_runs(outputs, "table3"))
    (found,), damaged = standing(outputs)
    assert (found[1].markdown(), damaged) == (table.markdown(), [])
    page = write_page(outputs).read_text()
    assert page.count("<h3>Table 3: verifiable-checker</h3>") == 1
    experiment_results(outputs, "table3").table().write(outputs / "table3")
    assert "<h3>table3: results</h3>" in write_page(outputs).read_text(), "of several experiments, whose"
    assert all(f"<sup>{n}</sup>" in page for n in range(1, len(table.footnotes()) + 1))


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])


DAMAGES = {
    "empty": lambda path: path.write_text(""),
    "torn": torn,
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00" * 9),
    "a list": lambda path: path.write_text("[1]\n[2]\n"),
    "a word": lambda path: path.write_text('"word"\n"word"\n'),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["record.json", "metrics.jsonl", "pairs.json", "eval/verifiable-checker/samples.jsonl"]
)
def test_a_damaged_file_of_a_run_is_named_and_everything_else_is_shown(outputs, name, damage):
    folder = next((outputs / "hostile").glob("sgdpo-*"))
    DAMAGES[damage](folder / name)
    runs = {(run["experiment"], run["name"]): run for run in data_of(write_page(outputs).read_text())["runs"]}
    # A killed writer leaves half a last line of its metrics; nobody's else.
    harmless = name == "metrics.jsonl" and damage in ("empty", "torn", "not text")
    harmless |= damage == "empty" and name.endswith("samples.jsonl")
    assert (runs["hostile", folder.name]["error"] is not None) != harmless
    assert len(runs) == len(read_runs(outputs))
    other = runs["table3", "dpo-tiny_llama-verifiable-lr2e-05-s42"]
    assert (other["error"], len(other["curves"])) == (None, 5)


@pytest.mark.parametrize("damage", ["empty", "torn", "not text"])
def test_a_damaged_table_is_named_and_everything_else_is_shown(outputs, damage):
    DAMAGES[damage](outputs / "table3" / "table3.json")
    page = write_page(outputs).read_text()
    assert "Left out:" in page
    assert str(outputs / "table3" / "table3.json") in page
    assert len(data_of(page)["runs"]) == len(read_runs(outputs))


def test_a_run_shows_its_held_out_rewards_its_title_and_when_it_started(outputs):
    """The fixtures' held-out row at step 20 differs from no training row; the last training one is dropped here."""
    folder = outputs / "table3" / "dpo-tiny_llama-verifiable-lr2e-05-s42"
    record = json.loads((folder / "record.json").read_text())
    record["final"]["train"]["rewards/chosen"] = 99.0
    record["settings"]["method"]["title"] = "DPO of theirs"
    (folder / "record.json").write_text(json.dumps(record))
    run = describe(view_run(folder), [TEXT_BUDGET])
    assert run["final"]["rewards/chosen"] == record["final"]["eval"]["rewards/chosen"] != 99.0
    assert (run["title"], run["started"]) == ("DPO of theirs", "2025-01-01 00:00")


def test_a_long_curve_is_thinned_by_means_and_gaps_stay_gaps():
    values = np.arange(10_000, dtype=float)
    values[:200] = np.nan
    curve = thin(np.arange(10_000), values)
    assert len(curve["x"]) == POINTS
    assert curve["y"][0] is None
    assert curve["y"][-1] == pytest.approx(9_958, rel=1e-3)
    assert curve["x"][-1] == 9_999
    assert thin(np.array([]), np.array([])) is None


def test_texts_beyond_the_budget_become_links(outputs):
    run = next(run for run in read_runs(outputs, "hostile") if run["method"] == "sgdpo")
    assert describe(run, [TEXT_BUDGET])["pairs"]
    small = describe(run, [10])
    assert (small["pairs"], small["samples"]) == ([], [])
    assert "see the files" in small["left_out"]
    assert "pairs.json" in [file["name"] for file in small["files"]]


def test_a_run_with_damaged_metrics_is_shown_with_the_reason(tmp_path):
    folder = write_run(tmp_path, "one", "dpo")
    (folder / "metrics.jsonl").write_text('{"st\n{"step": 2}\n')
    assert "line 1" in describe(view_run(folder), [TEXT_BUDGET])["error"]


def test_no_run_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"python src/train\.py"):
        write_page(tmp_path)


def browse(outputs, *arguments: str) -> str:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: the page is not looked at in a browser")
    page = (outputs / "report" / "index.html").as_uri()
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
    ]
    flags += [f"--user-data-dir={outputs / 'browser'}"]
    command = [BROWSER, *flags, *arguments[:-1], page + arguments[-1]]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


# As much of a document as the script needs: every element is its text and its children.
DOCUMENT = """
const made = {}, element = () => ({ children: [], value: "", dataset: {}, rows: [{ cells: [] }], classList: {},
  append(...c) { this.children.push(...c); }, replaceChildren(...c) { this.children = c; },
  setAttribute() {}, addEventListener() {}, get tHead() { return this; }, get tBodies() { return [this]; } });
globalThis.Node = Object;
globalThis.addEventListener = () => {};
globalThis.location = { hash: "" };
globalThis.document = { createElement: element, createElementNS: element, createTextNode: (text) => ({ text }),
  getElementById: (id) => (made[id] ??= element()), querySelectorAll: () => [] };
const words = (e) => (e.text ?? "") + e.children?.map(words).join(" ");
"""


def test_the_grid_takes_no_mean_over_runs_of_several_settings(tmp_path):
    """Two learning rates at one pair of ratios are no seeds of one cell; with one of them the grid is drawn."""
    if (node := shutil.which("node")) is None:
        pytest.skip("no node on this machine: the page's script is not run")
    write_run(tmp_path, "e", "sgdpo", ratio=(0.6, 0.9))
    for seed, rate, said in ((43, 2e-5, "r1 0.6"), (43, 1e-3, "python scripts/results.py e")):
        write_run(tmp_path, "e", "sgdpo", seed=seed, ratio=(0.6, 0.9), lr=rate)
        data = json.dumps(json.dumps(data_of(write_page(tmp_path).read_text())))
        given = f"{DOCUMENT}made.data = {{ textContent: {data} }};\n"
        script = f"{given}{(ASSETS / 'page.js').read_text()}\nconsole.log(words(made['g-view']));"
        done = subprocess.run([node, "-"], input=script, capture_output=True, text=True, check=False)
        assert said in done.stdout, done.stderr


@pytest.mark.slow
def test_a_real_browser_shows_the_runs_and_runs_no_sample(outputs):
    write_page(outputs)
    name = next(run.name for run in read_runs(outputs, "hostile") if run["method"] == "sgdpo")
    shown = browse(outputs, "--dump-dom", f"#run=hostile/{name}")
    assert "<title>SGDPO: runs, tables and figures</title>" in shown, "a sample's script has run"
    assert shown.count('class="status t-finished"') > 20
    assert '<span class="tok pilot"' in shown
    assert "&lt;/script&gt;&lt;script&gt;document.title='owned'" in shown
    assert "DPO 52" in shown, "the heat map's scale"


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "size", "dark"), [("1", "1200,900", False), ("0", "390,900", True)])
def test_a_screenshot_is_drawn_in_light_and_dark(outputs, scheme, size, dark):
    write_page(outputs)
    picture = outputs / "page.png"
    look = [f"--window-size={size}", f"--blink-settings=preferredColorScheme={scheme}"]
    browse(outputs, *look, f"--screenshot={picture}", "")
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
    assert (np.median(pixels) < 60) == dark
    assert np.ptp(pixels) > 150, "there is text on the page"


def test_the_column_of_wins_shows_no_number_of_another_scale(tmp_path):
    """Scores of 0 to 10 and shares of constraints stand in the list of evaluations, under their names."""
    for seed, benchmark in enumerate(sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml"))):
        folder = write_run(tmp_path, "judged", "dpo", seed=seed)
        record = json.loads((folder / "record.json").read_text())
        for wins, shown in (({}, None), ({"win_rate": 55.0, "lc_win_rate": 54.0}, 55.0)):
            first = {headline(benchmark): 6.6} if "win" not in headline(benchmark) else {}
            record["eval"] = {f"{benchmark}-judge": {**first, **wins}}
            (folder / "record.json").write_text(json.dumps(record))
            assert describe(view_run(folder), [0])["win"] == shown, benchmark
