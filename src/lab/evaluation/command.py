"""What the commands of evaluation show: a table of results, and published files scored without any run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lab.evaluation.comparison import short_names
from lab.evaluation.settings import build_benchmark, compose_evaluation
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.places import CONF

# Counts that every benchmark has, shown after its own numbers.
COUNTS = {"tokens_mean": "tokens", "truncated": "cut", "unparsable": "unparsable", "n": "prompts"}


def show(benchmark: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of results, a run a line, with standard errors where there are any.

    benchmark: its YAML, which says what numbers to show and what they are called.
    """
    metrics = dict(benchmark.get("metrics") or {"score_mean": "score"})
    if any("tasks" in result for result in results.values()):
        results = {run: _by_task(result) for run, result in results.items()}
        metrics = {key: key for result in results.values() for key in result}
    names = short_names(list(results))
    headings = {**metrics, **{key: text for key, text in COUNTS.items() if key not in metrics}}
    shown = [key for key in headings if any(result.get(key) is not None for result in results.values())]
    rows: list[list[Entry | str]] = [
        [names[run], *[_entry(result, key) for key in shown]] for run, result in results.items()
    ]
    facts = [f"{names[run]}: {note}" for run, result in results.items() for note in _notes(result)]
    header = ["run", *[headings[key] for key in shown]]
    return Table("evaluation", "", header, rows, 1, list(dict.fromkeys(facts)))


def score_files(
    files: Sequence[Path], model: str | None, words: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score published files of judgments: return the benchmark's YAML and {file: result}.

    words: overrides (benchmark=mt_bench, benchmark.difficulties=null). Without benchmark= the one that can read the
    first file is taken. Raises ValueError naming file and row.
    """
    if not files:
        raise ValueError("name at least one file of judgments: an annotations.json, or FastChat's judgments")
    if absent := [file for file in files if not file.is_file()]:
        raise ValueError(f"{absent[0]} is no file; give published judgments, e.g. an annotations.json")
    named = [word for word in words if word.startswith("benchmark=")]
    config = compose_evaluation(list(words) if named else [f"benchmark={recognise(files[0], model)}", *words])
    benchmark = build_benchmark(config)
    results = {}
    for file in files:
        rows = benchmark.published(file, model)
        judges = dict.fromkeys(str(row["judge"]) for row in rows if row.get("judge"))
        judged_by = {"judge": ", ".join(judges) or None, "model": rows[0].get("model")}
        results[str(file)] = {**benchmark.summarise(rows), **judged_by}
    return config.benchmark, results


def recognise(file: Path, model: str | None) -> str:
    """Return the benchmark whose published form a file has. Raise ValueError with what each one says."""
    said = []
    for path in sorted((CONF / "benchmark").glob("*.yaml")):
        name = OmegaConf.load(path).name
        try:
            build_benchmark(compose_evaluation([f"benchmark={name}"])).published(file, model)
            return name
        except ValueError as error:
            said.append(f"{name}: {error}")
    raise ValueError(f"{file} is no benchmark's file of judgments:\n" + "\n".join(said))


def _entry(result: Mapping[str, Any], key: str) -> Entry:
    value, error = result.get(key), result.get(f"{key.removesuffix('_mean')}_se")
    note = result.get(f"{key.removesuffix('_win_rate')}_form") if value is None else None
    return number(value, 0 if isinstance(value, int) else 2, error, note=note)


def _by_task(result: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{task} {key}": value for task, row in result["tasks"].items() for key, value in row.items()}


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = []
    if form := result.get("lc_form"):
        known = result.get("lc_win_rate") is not None
        notes.append(
            f"length-controlled win rate in its {form} form" if known else f"no LC win rate: it is {form}"
        )
    if baseline := result.get("won_over"):
        notes.append(f"win rates are over {baseline}, not over the SFT start")
    if result.get("prompts_cut"):
        notes.append(f"{result['prompts_cut']} prompts were too long for the model; their beginning was cut")
    if result.get("answers_unusable"):
        notes.append(f"{result['answers_unusable']} answers could not be had and count as empty")
    marked, demands = result.get("answers_with_markers"), result.get("answers_asking_for_a_rating")
    if marked or demands:
        notes.append(f"{marked} answers held the judge's markers (broken), {demands} asked for a rating")
    for bill, what in {"generation_cost": "answers", "cost": "judgments"}.items():
        if (cost := result.get(bill)) and "prompt_tokens" in cost:
            tokens = cost["prompt_tokens"] + cost["completion_tokens"]
            # Without prices nobody knows: 0 dollars would be a wrong bill.
            dollars = f", {cost['dollars']:.4f} dollars" if cost["dollars"] else ""
            notes.append(f"{cost['requests']} {what} paid for now, {tokens} tokens{dollars}")
    return notes
