"""Load a model and its tokenizer: from a folder, the hub, or a tiny architecture's config; check them first.

Only safetensors are read. Dropout and whatever else draws in training is off in both phases: at step 0 the policy must
equal its reference.
"""

import inspect
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.logging import disable_progress_bar

from sgdpo.config.schema import AdapterConfig, ModelConfig
from sgdpo.data.template import default_template
from sgdpo.hub import HUB_ID, from_hub
from sgdpo.models.adapters import adapter_errors, merged
from sgdpo.models.architectures import (
    architecture_errors,
    described,
    describing_errors,
    supports_sdpa,
)
from sgdpo.models.folder import ADAPTER, BASE, MERGE_IT, folder_errors, is_adapter, quantised_errors
from sgdpo.models.tiny import tiny_config, tiny_tokenizer
from sgdpo.store import hash_buffers, hash_folder, hash_json, read_json

log = logging.getLogger("sgdpo")

ATTENTIONS = ("sdpa", "eager", "flex_attention")
# What a model's config says that changes none of its outputs.
NO_OUTPUT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
# How configs call the rates of what they drop: attention_dropout, resid_pdrop, hidden_dropout_prob, layerdrop.
DROPOUT = re.compile(r"drop(out)?(_p|_prob)?$")
# How a forward draws: routers that jitter their input, or draw experts by their scores.
DRAWS = re.compile(
    r"\b(rand|randn|bernoulli|multinomial)(_like)?\(|\.(uniform|normal|exponential|bernoulli)_\("
)
NAMES_SHOWN = 4
T = TypeVar("T")


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer with a chat template. Raise ValueError if there is no template."""
    if model.path is None:
        tokenizer = tiny_tokenizer()
    else:
        tokenizer = loaded(
            lambda: tokenizer_class(model).from_pretrained(model.path, **_hub_arguments(model)),
            "the tokenizer", model.path,
        )  # fmt: skip
    if model.chat_template is not None:
        tokenizer.chat_template = _read_template(model)
    if not default_template(tokenizer.chat_template, f"the tokenizer of {model.path}"):
        raise ValueError(_no_template(model))
    return tokenizer


def load_config(model: ModelConfig, weights: Path | None = None) -> PreTrainedConfig:
    """Return the architecture's config, with every dropout at 0; loads no weights."""
    folder = weights or model.path
    if folder is None:
        config = tiny_config(model.tiny)
    elif is_adapter(Path(folder)):
        return load_config(model, base_of(Path(folder)))
    else:
        config = loaded(
            lambda: AutoConfig.from_pretrained(folder, **_hub_arguments(model, weights)), "the config", folder
        )
    _drop_nothing(config)
    return config


def _drop_nothing(config: PreTrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _drop_nothing(value)
        elif DROPOUT.search(key) and isinstance(value, int | float) and value:
            setattr(config, key, type(value)(0))  # some configs insist on the type


def load_model(
    model: ModelConfig, *, weights: Path | None = None, seed: int, dtype: torch.dtype = torch.float32,
    quantise: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """Return the causal language model, in training mode, on the CPU.

    weights: folder of a start run's model, else `model.path`, else random weights of `model.tiny` drawn from
    `seed`, which leaves the global random state alone. Of a folder that holds an adapter: its base with the adapter
    merged. quantise: hold the linear layers' weights in 4 bits.
    """
    disable_progress_bar()  # transformers' bars for loading and saving; ours are for what takes long
    folder = weights or model.path
    if folder is not None and is_adapter(Path(folder)):
        base = load_model(model, weights=base_of(Path(folder)), seed=seed, dtype=dtype)
        return merged(base, Path(folder)).train()
    config = load_config(model, weights)
    attention = model.attention if supports_sdpa(config) or model.attention != "sdpa" else "eager"
    if folder is None:
        with torch.random.fork_rng(devices=[]), _whole():
            torch.manual_seed(seed)
            built = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    else:
        built, report = loaded(
            lambda: AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, attn_implementation=attention, use_safetensors=True,
                ignore_mismatched_sizes=True,  # `check_tensors` names them
                quantization_config=_four_bits() if quantise else None, output_loading_info=True,
                **_hub_arguments(model, weights),
            ), "the model", folder,
        )  # fmt: skip
        check_tensors(report, folder)
    for module in built.modules():
        if isinstance(module, nn.Dropout):  # also one whose rate stands in a model's code
            module.p = 0.0
        elif _draws_in_training(type(module)):
            module.register_forward_pre_hook(_as_evaluated)
    return built.train()


@cache
def _draws_in_training(kind: type[nn.Module]) -> bool:
    try:
        code = inspect.getsource(kind.forward)
    except (OSError, TypeError):  # a compiled one: the first row tells whether it draws (step0_check)
        return False
    return "self.training" in code and DRAWS.search(code) is not None


def _as_evaluated(module: nn.Module, _: Any) -> None:
    module.training = False


def check_tensors(report: dict[str, Any], folder: str | Path) -> None:
    """Raise ValueError if weights were not there or of other sizes; say which were left over.

    transformers draws the former at random.
    """

    def listed(key: str) -> str:
        names = sorted(name if isinstance(name, str) else name[0] for name in report[key])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return ", ".join(names[:NAMES_SHOWN]) + more

    if report["missing_keys"]:
        raise ValueError(
            f"{folder} lacks {len(report['missing_keys'])} tensors of the model: {listed('missing_keys')}. They would"
            " be random; copy or download it again, or check model_type in its config.json"
        )
    if report["mismatched_keys"]:
        raise ValueError(
            f"{folder} holds tensors of other sizes than its config.json says: {listed('mismatched_keys')}; the two are"
            " not of one model: copy or download it again"
        )
    if report["unexpected_keys"]:
        found = listed("unexpected_keys")
        log.warning("%s holds tensors that the model does not know, which are left out: %s", folder, found)


def loaded(load: Callable[[], T], what: str, place: str | Path) -> T:
    """Return what `load` gets from a folder or the hub; whatever the libraries raise becomes one line that names it."""
    if not Path(place).is_dir():
        return from_hub(load, f"{what} of {place}")
    try:
        return load()
    except Exception as error:  # tokenizers and safetensors raise bare ones
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") else lines[0]
        raise ValueError(
            f"{what} of {place} cannot be loaded: {said.rstrip('.')}. Copy or download it again, or save it with"
            " save_pretrained"
        ) from error


def base_of(folder: Path) -> Path:
    """Return the folder of the weights that an adapter was trained on. Raise ValueError if they are not to be found."""
    if not (folder / BASE).is_file():
        named = read_json(folder / ADAPTER).get("base_model_name_or_path")
        raise ValueError(f"{folder} holds an adapter and says only that it belongs to {named}; {MERGE_IT}")
    entry = read_json(folder / BASE)
    place = Path(entry["path"]).expanduser()
    if not place.is_dir() and entry["beside"] is not None:
        place = folder / entry["beside"]
        if not place.is_dir():
            raise ValueError(
                f"the base of the adapter {folder} is gone: {entry['path']}; put it there again, or train again"
            )
    elif not place.is_dir():
        place = weights_folder(ModelConfig(name="base", path=entry["path"], revision=entry["revision"]))
    if hash_folder(place, ("*.safetensors",)) != entry["weights"]:
        raise ValueError(
            f"{folder} is an adapter of other weights than {place} holds: it would change what it was not trained on."
            " Bring its base back, or train again"
        )
    return place


def merge_in_place(folder: Path, model: ModelConfig) -> None:
    """Turn a folder that holds an adapter into one that holds the model; the adapter goes into its `adapter/`."""
    with _whole():
        whole = load_model(model, weights=folder, seed=0)
    (folder / "adapter").mkdir(exist_ok=True)
    for file in [*folder.glob("adapter_*"), *folder.glob("README.md")]:
        file.rename(folder / "adapter" / file.name)
    whole.save_pretrained(folder)


def _four_bits() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip


@contextmanager
def _whole() -> Iterator[None]:
    """Build random models whole: ZeRO-3 cuts a model while it is built, and would draw other weights."""
    settings = hf_deepspeed._hf_deepspeed_config_weak_ref
    held = settings() if settings is not None else None
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if held is not None:
            hf_deepspeed.set_hf_deepspeed_config(held)


def model_errors(model: ModelConfig, adapter: AdapterConfig | None = None) -> list[str]:
    """List what is wrong with the model's settings and files, as sentences with advice; loads no weights."""
    errors = _facts_errors(model)
    if model.attention not in ATTENTIONS:
        errors.append(f"model.attention={model.attention!r} is not one of {list(ATTENTIONS)}")
    if model.chat_template is not None:
        errors += _template_errors(model)
    folder = None if model.path is None else Path(model.path)
    if folder is None or folder.is_dir():
        errors += _missing(model) if folder is None else folder_errors(model, folder)
        if errors := errors or _reading_errors(model):
            return errors
        config = load_config(model)
        built = describing_errors("model.tiny", config) if folder is None else []
        return config_errors(config) or built or config_errors(config, adapter)
    if HUB_ID.fullmatch(model.path) is None:
        advice = (
            model.setup_hint or "set model.path to a folder with config.json and safetensors, or to a hub id"
        )
        errors.append(f"model.path={model.path} does not exist; {advice}")
    return errors


def _facts_errors(model: ModelConfig) -> list[str]:
    """List what is wrong with the facts that a plan takes for a model's config."""
    if not model.facts:
        return []
    try:
        return describing_errors("model.facts", described("model.facts", model.facts))
    except ValueError as error:
        return [str(error)]


def _reading_errors(model: ModelConfig) -> list[str]:
    """List why a model's config or tokenizer cannot be read although its files are whole."""
    try:
        load_config(model)
        load_tokenizer(model)
    except ValueError as error:
        return [str(error)]
    return []


def config_errors(config: PreTrainedConfig, adapter: AdapterConfig | None = None) -> list[str]:
    """List what a model's config alone says against training it, with an adapter if there is one."""
    how = getattr(config, "quantization_config", None)
    if errors := quantised_errors(config.name_or_path, how) or architecture_errors(config):
        return errors
    return adapter_errors(adapter, config) if adapter is not None else []


def content_hashes(
    model: ModelConfig, weights: Path | None = None, *, seed: int = 0, memory: Path | None = None
) -> dict[str, str]:
    """Return the hashes of what a model's outputs depend on: {"weights", "config"}.

    Norms, rotations and windows stand in the config and are no weights. Random weights are what the seed makes
    them. memory: where hashes of files are remembered, as in `hash_file`.
    """
    folder, config = weights_folder(model, weights), load_config(model, weights).to_dict()
    tensors = (
        hash_folder(folder, ("*.safetensors",), memory)
        if folder is not None
        else weights_hash(load_model(model, seed=seed))
    )
    return {
        "weights": tensors,
        "config": hash_json({key: value for key, value in config.items() if key not in NO_OUTPUT}),
    }


def weights_hash(module: nn.Module) -> str:
    """Return a hash of every tensor's name, dtype, shape and bytes, 16 hex digits."""
    return hash_buffers(
        part
        for name, tensor in sorted(module.state_dict().items())
        for part in (
            f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(),
            tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy(),
        )
    )


def weights_folder(model: ModelConfig, weights: Path | None = None) -> Path | None:
    """Return the folder of the weights (the start run's, the path, the hub's snapshot); None if random."""
    if weights is not None or model.path is None:
        return weights
    folder = Path(model.path)
    if folder.is_dir():
        return folder
    patterns = ["*.safetensors*", "*.json"]
    return Path(
        from_hub(
            lambda: snapshot_download(model.path, revision=model.revision, allow_patterns=patterns),
            f"the weights of {model.path}",
        )
    )


def _hub_arguments(model: ModelConfig, weights: Path | None = None) -> dict[str, Any]:
    revision = None if weights is not None else model.revision
    return {"revision": revision, "trust_remote_code": model.trust_remote_code}


def _read_template(model: ModelConfig) -> str:
    source = Path(model.chat_template)
    if source.suffix == ".jinja":
        try:
            return source.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"model.chat_template={source} cannot be read: {error}") from None
    template = loaded(
        lambda: AutoTokenizer.from_pretrained(model.chat_template), "the chat template", model.chat_template
    ).chat_template
    if not (found := default_template(template, f"model.chat_template={model.chat_template}")):
        raise ValueError(
            f"model.chat_template={model.chat_template} has no chat template; name another source"
        )
    return found


def _template_errors(model: ModelConfig) -> list[str]:
    source = Path(model.chat_template)
    if source.suffix == ".jinja" and not source.is_file():
        return [f"model.chat_template={source} does not exist; give a .jinja file, a folder or a hub id"]
    if source.suffix != ".jinja" and not source.is_dir() and HUB_ID.fullmatch(model.chat_template) is None:
        return [f"model.chat_template={source} is no file, folder or hub id; give one of these"]
    return []


def _missing(model: ModelConfig) -> list[str]:
    if model.tiny is not None:
        return []
    return [f"model {model.name!r} needs model.path: a folder with config.json and safetensors, or a hub id"]


def tokenizer_class(model: ModelConfig) -> type:
    """Return what loads a folder's or a hub id's tokenizer as it was saved.

    AutoTokenizer rebuilds it as the architecture's own class wherever a generic one is named, and a tokenizer of the
    user's own comes back as another: that of a Qwen-2 model would split and drop as Qwen-2's does.
    """
    generic = ("TokenizersBackend", "PreTrainedTokenizerFast")
    saved = get_tokenizer_config(model.path, revision=model.revision).get("tokenizer_class") in generic
    return PreTrainedTokenizerFast if saved else AutoTokenizer


def _no_template(model: ModelConfig) -> str:
    return (
        f"model {model.name!r} ({model.path}) has no chat template; set model.chat_template to a .jinja file,"
        " or to a folder or hub id of a model that has one (the instruct sibling, for instance)"
    )
