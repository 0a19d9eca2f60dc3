#!/bin/bash
# Trains on two machines of four GPUs each, and goes on after preemption and after the time limit.
#
#     sbatch docs/slurm.sh                                         from the project's folder
#     sbatch docs/slurm.sh PROGRAM.py --use_gpu --shard [flags]    one task a job
#
#SBATCH --job-name=build-gpt2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180

words=("$@")
if [ $# -eq 0 ]; then
    words=(paraphrase_detection.py --model_size gpt2-xl --use_gpu --shard --bf16 --batch_size 8)
    words+=(--extension gradient_checkpointing)
fi
runs="runs/slurm-$SLURM_JOB_ID"
if compgen -G "$runs/*/last.safetensors" > /dev/null; then
    words+=(--resume)
fi

# USR1: 180 seconds are left. torchrun is asked to end, the run saves, the job is queued again.
# TERM: another job is preferred. Slurm tells torchrun so, and queues the job again itself.
out_of_time=
trap 'out_of_time=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap : TERM
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150 # seconds in which the run may save; by default 30

first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" \
    --rdzv_backend=c10d --rdzv_endpoint="$first_machine:29500" \
    --rdzv_id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    "${words[@]}" --runs_dir "$runs" &
run=$!
wait "$run"
status=$?
while kill -0 "$run" 2> /dev/null; do # a signal ended the wait, not the run
    wait "$run"
    status=$?
done
if [ -n "$out_of_time" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
