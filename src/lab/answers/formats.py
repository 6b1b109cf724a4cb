"""Published files of prompts and answers: AlpacaEval's model outputs, FastChat's model answers.

A path is a file, or `hub:<owner>/<dataset>/<file>` for a file of a dataset on the hub.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdpo.hub import from_hub
from sgdpo.store import read_json, read_jsonl

HUB = "hub:"


def locate(path: str) -> Path:
    """Return the local file of a path or of a `hub:` address. Raise ValueError if it is not there."""
    if path.startswith(HUB):
        from huggingface_hub import hf_hub_download

        parts = path[len(HUB) :].split("/", 2)
        if len(parts) < 3:
            raise ValueError(f"{path} is no address of a file; it looks like hub:<owner>/<dataset>/<file>")
        repo = "/".join(parts[:2])
        return Path(from_hub(lambda: hf_hub_download(repo, parts[2], repo_type="dataset"), path))
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{path} does not exist; give a file, or an address like hub:tatsu-lab/alpaca_eval/..."
        )
    return file


def read_rows(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read a JSON list of objects that all have string fields `keys`. Raise ValueError naming the row."""
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} must hold a JSON list of at least one row, as AlpacaEval writes it")
    for number, row in enumerate(rows):
        bad = [key for key in keys if not isinstance(row, Mapping) or not isinstance(row.get(key), str)]
        if bad:
            raise ValueError(f"{file}, row {number}: {bad} must be strings")
    return rows


def read_outputs(path: str) -> list[dict[str, Any]]:
    """Read a model_outputs.json: rows {instruction, output, generator, dataset}, in the file's order.

    Raises ValueError naming the row for a wrong form, a missing or empty field, or an instruction that comes
    twice.
    """
    rows = read_rows(locate(path), ("instruction", "output"))
    refuse_twice(path, rows)
    return rows


def refuse_twice(file: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if an instruction comes twice."""
    twice = [text for text, count in Counter(row["instruction"] for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: {len(twice)} instructions come twice (first: {twice[0][:60]!r})")


def read_answers(file: Path, model: str | None = None) -> dict[int | str, tuple[str, ...]]:
    """Read answers in FastChat's form, each question's first choice; model: whose, if the file has several.

    Raises ValueError for a wrong row, and for several models of which none is chosen.
    """
    answers: dict[int | str, tuple[str, ...]] = {}
    for number, row in enumerate(of_one_model(read_jsonl(file), "model_id", model, file), 1):
        try:
            turns, question_id = texts(row["choices"][0]["turns"]), row["question_id"]
        except (KeyError, IndexError, TypeError):
            turns = question_id = None
        if turns is None or not isinstance(question_id, int | str):
            raise ValueError(
                f"{file}, row {number}: not an answer in FastChat's form (question_id, choices, turns)"
            )
        if question_id in answers:
            raise ValueError(f"{file} answers question {question_id} more than once")
        answers[question_id] = turns
    return answers


def texts(value: Any) -> tuple[str, ...] | None:
    """Return a JSON list of strings; None if a value is no such list."""
    known = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return tuple(value) if known else None


def of_one_model(
    rows: Sequence[dict[str, Any]], key: str, model: str | None, file: Path
) -> list[dict[str, Any]]:
    """Return the rows of one model. Raise ValueError naming the models if they are several and none is chosen."""
    models = sorted({str(row.get(key)) for row in rows if row.get(key) is not None})
    if model is None and len(models) > 1:
        raise ValueError(f"{file} holds {len(models)} models; choose one: {', '.join(models)}")
    if model is not None and model not in models:
        raise ValueError(f"{file} holds no model {model!r}; it has {', '.join(models) or 'no name of one'}")
    return [row for row in rows if model is None or str(row.get(key)) == model]
