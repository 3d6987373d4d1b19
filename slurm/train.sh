#!/bin/bash
# A training job: one task a GPU (or, without GPUs, `tasks_per_node` tasks). `lvm launch experiment=...` fills in what
# stands in @{...} and submits it; a copy of your own: lvm launch launcher.template=FILE ...
#SBATCH --job-name=@{name}
#SBATCH --nodes=@{nodes}
#SBATCH --ntasks-per-node=@{tasks_per_node}
#SBATCH --cpus-per-task=@{cpus_per_task}
#SBATCH --time=@{time}
#SBATCH --chdir="@{folder}"
#SBATCH --output="@{run_dir}/logs/job.log"
#SBATCH --open-mode=append
#SBATCH @{requeue}
#SBATCH --signal=USR2@@{signal_seconds}
@{options}

run="@{run_dir}"
echo "$(date +%FT%T) job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}${LVM_CHAIN_LINK:+, link $LVM_CHAIN_LINK}," \
    "on $SLURM_JOB_NODELIST"

@{environment}
@{setup}

# Before the end the tasks are signalled; they save, and rank 0 asks for the next start. When one has ended the others
# have --wait seconds to end by themselves.
mapfile -t overrides < "$run/slurm/overrides.txt"
exec srun @{srun_options} --kill-on-bad-exit=0 --wait=@{signal_seconds} \
    --input=none --open-mode=append --output="$run/logs/rank-%t.log" \
    @{python} -m lvm train "${overrides[@]}"
