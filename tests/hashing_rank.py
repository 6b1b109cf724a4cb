"""The real worker, which also writes a hash of the trained weights as each rank holds them."""

import hashlib
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from sgdpo.runs import worker


def weights_digest(model: torch.nn.Module) -> str:
    """Return a hash of a model's weights; those that ZeRO-3 or FSDP2 cut are gathered first."""
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if hasattr(parameter, "ds_id"):
            from deepspeed.runtime.zero import GatheredParameters

            with GatheredParameters([parameter]):
                whole = parameter.detach().clone()
        digest.update(whole.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    from sgdpo.training.trainer import PairTrainer

    train = PairTrainer.train

    def train_and_hash(self: PairTrainer, *args, **kwargs):
        result = train(self, *args, **kwargs)
        Path(sys.argv[1], f"weights{os.environ['RANK']}").write_text(weights_digest(self.model))
        return result

    PairTrainer.train = train_and_hash
    worker.main()


if __name__ == "__main__":
    main()
