"""Run `convnext` with FSDP on CPUs, to test it without two GPUs.

    torchrun --standalone --nproc-per-node 2 tools/fsdp_on_cpu.py finetune DATA -o RUN …

Accelerate has FSDP for GPUs only: with `accelerate launch --use_fsdp --cpu` it silently does not shard the model. This
script lifts that condition. The rest is unchanged: torch shards the parameters over the processes, gathers them for
each pass, and scatters the gradients.
"""

import os
import sys
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from convnext_cli.cli.app import main
from convnext_cli.training.compute import devices

MIN_PARAMS = 10_000  # parameters of a module that is sharded; small enough for several in timm's test model

_make_accelerator = devices.make_accelerator


def make_sharding_accelerator(*args: Any, **options: Any) -> Accelerator:
    """Return the accelerator of `devices.make_accelerator`, with FSDP switched on."""
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
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        if not end.code and dist.is_initialized():
            dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))  # the model holds Gloo's group, whose threads can abort Python's exit
