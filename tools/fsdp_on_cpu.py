"""Runs `convnext` with FSDP on the processor, to try that path where there are no two GPUs.

    torchrun --standalone --nproc-per-node 2 tools/fsdp_on_cpu.py finetune DATA -o RUN …

Accelerate has FSDP for accelerators only: under `accelerate launch --use_fsdp --cpu` it leaves the model whole, without
a word. This lifts that one condition and is otherwise the real thing: torch shards the parameters over the processes,
gathers them for each pass, and scatters the gradients.
"""

import sys
from typing import Any

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from convnext_cli.cli.app import main
from convnext_cli.training.compute import devices

MIN_PARAMS = 10_000  # of a module that is sharded by itself: small enough for timm's test model to have several

_make_accelerator = devices.make_accelerator


def make_sharding_accelerator(*args: Any, **options: Any) -> Accelerator:
    """What `devices.make_accelerator` gives, told that it is to shard."""
    accelerator = _make_accelerator(*args, **options)
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="size_based_wrap",
        min_num_params=MIN_PARAMS,
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    return accelerator


if __name__ == "__main__":
    devices.make_accelerator = make_sharding_accelerator
    main(sys.argv[1:])
