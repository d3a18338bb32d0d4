#!/bin/bash
# Fine-tuning on one Slurm node with four GPUs; submit it with: sbatch examples/slurm.sh
#
# Before the time limit or a preemption Slurm sends SIGTERM. The run finishes its step, saves a checkpoint, and exits with
# 143. This script then requeues itself, and the next start resumes the run.
#SBATCH --job-name=convnext
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120        # seconds before the end; a step and a checkpoint must fit
#SBATCH --requeue
#SBATCH --open-mode=append

DATA=${DATA:-$HOME/xrays}
RUN=${RUN:-runs/xrays-$SLURM_JOB_ID}     # a requeued job keeps its number

if [ -e "$RUN/plan.toml" ]; then
    words=(--resume "$RUN")
else
    words=("$DATA" --output "$RUN" --model convnextv2_tiny --offline)
fi
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" convnext finetune "${words[@]}" --devices 4  # srun does not inherit it
code=$?
if [ $code -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
