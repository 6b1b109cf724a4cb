"""Where a model answers or scores: `auto` (a GPU if there is one), `cpu`, `cuda`, or one of several (`cuda:1`)."""

import torch


def device_of(word: str) -> torch.device:
    """Return the device that a setting names. Raise ValueError if this machine has none such."""
    gpus = torch.cuda.device_count()
    device = torch.device(word if word != "auto" else "cuda" if gpus else "cpu")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(
            f"device={word}, but {gpus} CUDA devices are visible; use device=cpu, or check CUDA_VISIBLE_DEVICES"
        )
    return device
