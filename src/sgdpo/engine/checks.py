"""What is wrong with an engine, found before anything heavy loads."""

import importlib.util
import socket
from collections.abc import Iterator
from typing import Any

from sgdpo.config.identity import needs_start
from sgdpo.config.schema import EngineConfig, RunConfig
from sgdpo.engine.nodes import this_node
from sgdpo.hub import first_line


def engine_errors(config: RunConfig) -> list[str]:
    """List everything wrong with a run's engine on this machine, each a sentence with advice."""
    engine = config.engine
    errors = list(_batch_errors(config))
    if engine.deepspeed and config.trainer.on_nonfinite == "skip":
        errors.append(
            f"trainer.on_nonfinite=skip does not work with engine={engine.name}: DeepSpeed updates the weights "
            "before anyone sees the gradient's norm; use on_nonfinite=stop, or engine=ddp"
        )
    if engine.deepspeed and engine.fsdp:
        errors.append(
            f"engine={engine.name} has both engine.deepspeed and engine.fsdp; set one of them to null"
        )
    if config.adapter.quantise and engine.sharded:
        errors.append(
            f"adapter={config.adapter.name} does not work with engine={engine.name}, which cannot cut weights of 4 bits"
            " into shares; use engine=ddp, or adapter=lora"
        )
    if config.precision.lean and engine.sharded:
        errors.append(
            f"precision={config.precision.name} does not work with engine={engine.name}, which keeps its weights in"
            " float32; use precision=bf16 with it, or engine=ddp"
        )
    if config.dry_run:  # a plan may be for another machine
        return errors
    here = [*_device_errors(config), *_package_errors(config), *_port_errors(engine)]
    return [*errors, *here] or list(_deepspeed_errors(engine))


def visible_gpus() -> int:
    """Count the CUDA devices that this process may use."""
    import torch

    return torch.cuda.device_count()


def _device_errors(config: RunConfig) -> Iterator[str]:
    gpus = visible_gpus() if config.device != "cpu" else 0
    if config.device == "cuda" and gpus == 0:
        yield "device=cuda, but no CUDA device is visible; use device=cpu, or check CUDA_VISIBLE_DEVICES"
    elif gpus and config.engine.num_processes > gpus:
        yield (
            f"engine.num_processes={config.engine.num_processes}, but {gpus} GPUs are visible on this "
            f"machine; set engine.num_processes={gpus}, or device=cpu"
        )


def _batch_errors(config: RunConfig) -> Iterator[str]:
    """A step's pairs are dealt out evenly: every process gets the same number."""
    world = config.engine.world
    batches = {"optimizer.batch_size": config.optimizer.batch_size}
    if needs_start(config):
        batches["optimizer.sft.batch_size"] = config.optimizer.sft.batch_size
    for key, batch in batches.items():
        if batch >= 1 and batch % world:
            below, above = batch // world * world, (batch // world + 1) * world
            nearest = f"{below} and {above}" if below else str(above)
            yield (
                f"{key}={batch} is not divisible by the {world} processes (engine.num_processes x "
                f"engine.num_nodes); the nearest that are: {nearest}"
            )


def _package_errors(config: RunConfig) -> Iterator[str]:
    engine = config.engine
    if config.adapter.quantise and (config.device == "cpu" or visible_gpus() == 0):
        yield (
            f"adapter={config.adapter.name} holds the weights in 4 bits, which needs a GPU, and none is visible; use"
            " adapter=lora here (dry_run=true plans it for another machine)"
        )
    elif config.adapter.quantise and importlib.util.find_spec("bitsandbytes") is None:
        yield f"adapter={config.adapter.name} needs the package bitsandbytes: pip install bitsandbytes"
    package = config.precision.facts.package
    if package and importlib.util.find_spec(package) is None:
        yield (
            f"precision={config.precision.name} needs the package {package}: pip install {package}, or use"
            " precision=lean"
        )
    if engine.deepspeed and importlib.util.find_spec("deepspeed") is None:
        yield (
            f"engine={engine.name} needs the package deepspeed, which is not installed; run `make setup`, or "
            "use engine=ddp"
        )


def _deepspeed_errors(engine: EngineConfig) -> Iterator[str]:
    """Let DeepSpeed read its settings before anything runs: most of them are its own to know."""
    if not engine.deepspeed:
        return
    import pydantic
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(_filled(engine.deepspeed))
    except pydantic.ValidationError as error:
        for wrong in error.errors():
            yield f"engine.deepspeed: {'.'.join(map(str, wrong['loc']))}={wrong['input']!r}: {wrong['msg']}"
    except Exception as error:  # whatever its reading of a wrong kind of value ends in
        yield f"engine.deepspeed: DeepSpeed cannot read these settings ({first_line(error)})"


def _filled(value: Any) -> Any:
    """Return settings with a number in the place of each `auto`, which only the run can fill in."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items()}
    return 1 if value == "auto" else value


def _port_errors(engine: EngineConfig) -> Iterator[str]:
    try:
        node = this_node(engine)
    except ValueError as error:
        yield str(error)
        return
    port = node.port
    if port is None:
        return
    if not 1024 <= port < 2**16:
        yield f"the port {port} must lie between 1024 and 65535; set engine.port"
    elif node.rank == 0 and _in_use(port):
        yield f"port {port} is in use on this machine; set another engine.port, or null to have one picked"


def _in_use(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
