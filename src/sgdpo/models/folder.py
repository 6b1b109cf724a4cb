"""What a folder with a model must hold, checked by its small files and its weights' headers alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sgdpo.config.schema import ModelConfig
from sgdpo.store import DamagedError, read_json

MERGE_IT = (
    "merge the two, PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder) with peft, and"
    " give that folder (for a run of ours scripts/merge.py RUN FOLDER does it)"
)
# What peft writes of an adapter, and what we write beside it: what it was trained on.
ADAPTER, BASE = "adapter_config.json", "adapter_base.json"
AGAIN = "copy or download it again"
INDEX = "model.safetensors.index.json"
# Types of tensors in a safetensors file that are weights as they are, or buffers; others are quantised weights.
WHOLE = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}
# What transformers reads of a folder beside the weights.
JSON = (
    "config.json", "generation_config.json", "*.index.json", "tokenizer*.json", "special_tokens_map.json",
    "added_tokens.json", "vocab*.json", "chat_template.json",
)  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter and no model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def folder_errors(model: ModelConfig, folder: Path) -> list[str]:
    """List what a folder lacks or what in it is damaged, as sentences with advice; reads no weights."""
    if is_adapter(folder):
        return [f"model.path={folder} holds an adapter and no model; {MERGE_IT}"]
    if not (folder / "config.json").is_file():
        return [f"model.path={folder} holds no config.json; give the folder that save_pretrained wrote"]
    errors = [*_damaged_json(folder), *_weight_errors(folder)]
    if model.revision is not None:
        errors.append(
            f"model.revision={model.revision} is of the hub, but model.path={folder} is a folder; leave it out"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        errors.append(
            f"model.path={folder} holds no tokenizer; save one there with tokenizer.save_pretrained"
        )
    if errors:
        return errors
    config = read_json(folder / "config.json", kind=dict)
    errors += quantised_errors(folder, config.get("quantization_config"))
    if config.get("auto_map") and not model.trust_remote_code:
        errors.append(f"model.path={folder} comes with Python code of its own; {_with_code(config)}")
    return errors


def _with_code(config: dict[str, Any]) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    read = "read it, then set model.trust_remote_code=true"
    if (kind := config.get("model_type")) not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return read
    return f"{read}, or take auto_map out of its config.json: transformers' own {kind} then runs instead"


def _damaged_json(folder: Path) -> Iterator[str]:
    for file in sorted({file for pattern in JSON for file in folder.glob(pattern)}):
        try:
            read_json(file, kind=dict, advice=AGAIN)
        except DamagedError as error:
            yield str(error)


def _weight_errors(folder: Path) -> Iterator[str]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [file.name for file in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]]
        found = f" (only {pickled[0]}, which is not read: pickles can run code)" if pickled else ""
        yield f"model.path={folder} holds no weights{found}; it needs *.safetensors"
        return
    kinds: set[str] = set()
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118
                kinds |= {part.get_dtype() for part in slices if not _is_mask(part.get_shape())}
        except (SafetensorError, OSError) as error:
            yield f"{file} is damaged ({error}); {AGAIN}"
    if kinds - WHOLE:
        yield _quantised(folder, ", ".join(sorted(kinds - WHOLE)))
    try:
        shards = read_json(folder / INDEX, default={}, kind=dict).get("weight_map", {})
    except DamagedError:
        return  # said already
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        yield f"{folder / INDEX} names no files by tensor (weight_map); {AGAIN}"
        return
    for name in sorted(set(shards.values()) - {file.name for file in files}):
        yield f"{folder / name} is missing, which {INDEX} names; {AGAIN}"


def _is_mask(shape: list[int]) -> bool:
    """Say whether a tensor is the causal mask that older GPT-2s and GPT-NeoXs were saved with, in bytes."""
    return len(shape) == 4 and shape[:2] == [1, 1] and shape[2] == shape[3]


def quantised_errors(place: str | Path, how: Any) -> list[str]:
    """Refuse weights that a config.json says are quantised. how: its quantization_config."""
    if not how:
        return []
    return [_quantised(place, how.get("quant_method", "some way") if isinstance(how, dict) else how)]


def _quantised(place: str | Path, how: str) -> str:
    return (
        f"model.path={place} holds quantised weights ({how}), which cannot be trained as they are; take the model in"
        " bfloat16 or float32 (adapter=qlora quantises it as it loads)"
    )
