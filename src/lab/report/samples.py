"""A page of samples: the same prompts, answered by every method of an experiment."""

from collections.abc import Sequence
from typing import Annotated

from lab.report.cells import choose_evaluation
from lab.report.entries import facts
from lab.report.names import method_title
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.runs.records import RunView
from sgdpo.store import read_jsonl
from sgdpo.values import Range

SHORT = 600  # characters of an answer that are shown


def samples(
    runs: Sequence[RunView],
    *,
    benchmarks: tuple[str, ...],
    prompts: Annotated[int, Range("[1, 10000]")] = 12,
) -> Table:
    """Show some prompts with the answer of each method's first seed, the start's first; none chosen by its answers."""
    evaluation = choose_evaluation(runs, benchmarks)
    answers: dict[str, dict[str, dict]] = {}
    finished = [run for run in runs if run.status == "finished" and evaluation in (run["eval"] or {})]
    order = sorted(finished, key=lambda run: (run["steps"] != 0, run["phase"] != "sft", run["seed"]))
    for run in order:
        rows = read_jsonl(run.folder / "eval" / evaluation / "samples.jsonl")
        answers.setdefault(method_title(run["method"], [run]), {row["prompt_id"]: row for row in rows})
    first = next(iter(answers.values()))
    ids = [key for key in first if all(key in own for own in answers.values())]
    shown: list[list[Entry | str]] = [
        [
            first[key]["prompt"] if who == next(iter(answers)) else "",
            who,
            number(own[key].get("score", own[key].get("preference")), 2),
            _text(own[key]),
        ]
        for key in ids[:: max(1, len(ids) // prompts)][:prompts]
        for who, own in answers.items()
    ]
    return Table("", "", ["prompt", "method", "score", "answer"], shown, 2, facts(finished, evaluation))


def _text(row: dict) -> str:
    text = " / ".join(row["response"].splitlines())
    return text[:SHORT] + (" ..." if len(text) > SHORT else "") + (" (cut)" if row["truncated"] else "")
