"""What is cut over the ranks: a rank's share of a parameter, and FSDP2 where accelerate would leave it out."""

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments


def share(parameter: Tensor) -> Tensor:
    """Return what this rank holds of a parameter, which ZeRO-3 and FSDP2 cut."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter)


def insist_on_fsdp(accelerator: Accelerator, arguments: TrainingArguments) -> bool:
    """Say whether a run trains with FSDP2; on CPUs, where accelerate would take DDP without a word, see to it."""
    if not arguments.fsdp:
        return False
    if accelerator.distributed_type != DistributedType.FSDP:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
    return True
