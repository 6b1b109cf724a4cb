"""The card of a trained model: what it is, how it was trained and what came out, read off the record."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sgdpo.drawing.table import Table
from sgdpo.runs.records import RunView, flatten
from sgdpo.values import fits

# Of the settings, what a reader of the card asks for first; config.yaml beside the run holds all.
SHOWN = ("method", "ratio", "pilot", "optimizer", "adapter", "seed", "init", "precision")
HIDDEN = ("function", "needs", "title", "colour", "phase")


def model_card(run: RunView, licence: str | None = None) -> str:
    """Return the card as Markdown with the head that the hub reads; the licence is the publisher's to choose."""
    settings: dict[str, Any] = run["settings"] or {}
    model, data, adapter = settings["model"], settings["data"], settings.get("adapter")
    alone = adapter is not None and not adapter["merge"]  # model/ holds no whole weights
    head = ModelCardData(
        license=licence,
        base_model=_hub_id(model.get("path")),
        library_name="peft" if alone else "transformers",
        pipeline_tag="text-generation",
        tags=["sgdpo", "preference-optimization", settings["method"]["name"]],
    )
    counts = ((run["data"] or {}).get("counts") or {}).get("train") or {}
    start = f", started from the run {run['start']}" if run["start"] else ""
    best = run["best"]
    chosen = f" They are those of step {best['step']}, the best by {best['metric']}." if best else ""
    measured = {f"eval/{key}": value for key, value in ((run["final"] or {}).get("eval") or {}).items()}
    measured |= flatten(run["eval"] or {})
    lines = [
        f"---\n{head}\n---\n\n# {run.name}\n",
        f"{model['name']} trained with {settings['method'].get('title') or settings['method']['name']} on "
        f"{data['name']}{start}.{chosen}\n",
        "Licence: " + (licence or "not chosen yet; the base model's and the data's own terms apply.") + "\n",
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model = AutoModelForCausalLM.from_pretrained(PATH)\ntokenizer = AutoTokenizer.from_pretrained(PATH)\n```\n",
        *["It is an adapter: the package peft must be there, and the base that adapter_config.json names.\n"]
        * alone,
        "The tokenizer holds the chat template that it was trained with.\n",
        "## Training\n",
        f"{counts.get('kept', '?')} of {counts.get('read', '?')} rows of {counts.get('source', data['name'])}, "
        f"{run.steps_taken} steps, {run['seconds']:.0f} s.\n",
        _table("setting", _settings(settings)),
        "## Results\n",
        _table("metric", {key: value for key, value in measured.items() if fits(value, float)}),
        f"Code: commit {(run['git'] or {}).get('commit')}; "
        + ", ".join(f"{name} {version}" for name, version in (run["versions"] or {}).items() if version),
    ]
    return "\n".join(lines) + "\n"


def _hub_id(path: str | None) -> str | None:
    """Return the base model's id; a folder of this machine is none."""
    return (
        path if path and path.count("/") == 1 and path[0] not in "./~" and not Path(path).exists() else None
    )


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    flat = flatten({key: settings[key] for key in SHOWN if settings.get(key) is not None})
    return {
        key: v for key, v in flat.items() if v not in (None, [], "") and not set(key.split(".")) & set(HIDDEN)
    }


def _table(first: str, values: dict[str, Any]) -> str:
    rows = [
        [key, f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in values.items()
    ]
    return Table("card", "", [first, "value"], rows).markdown()
