#!/bin/bash
# Fine-tuning on two machines with four GPUs each. Run this on both, with the name of the first one:
#
#     HEAD=machine-1 bash examples/two_machines.sh
#
# Data and run folder lie on a shared disk, under the same path on both. --batch-size counts the images of all eight GPUs,
# so the same settings give the same training as on one. If a process dies, torchrun restarts all of them, up to three
# times, and the same command resumes from the last checkpoint.
DATA=${DATA:-/shared/xrays}
RUN=${RUN:-/shared/runs/xrays}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600     # seconds to finish a step and save when told to stop

torchrun \
    --nnodes 2 --nproc-per-node 4 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id convnext \
    -m convnext_cli finetune "$DATA" --output "$RUN" --model convnextv2_tiny --offline
