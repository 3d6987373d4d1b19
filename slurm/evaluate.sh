#!/bin/bash
# An array that evaluates: task i of N takes every N-th block of cases, on one GPU or none. `lvm launch kind=evaluate
# ...` fills in what stands in @{...}. A task that is requeued goes on where it was; whichever ends last writes the
# report, and submitting again does what is missing.
#SBATCH --job-name=@{name}
#SBATCH --array=0-@{last_task}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=@{cpus_per_task}
#SBATCH --time=@{time}
#SBATCH --chdir="@{folder}"
#SBATCH --output="@{run_dir}/logs/task-%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
@{options}

run="@{run_dir}"
echo "$(date +%FT%T) job $SLURM_JOB_ID, task $SLURM_ARRAY_TASK_ID, start ${SLURM_RESTART_COUNT:-0}, on $SLURMD_NODENAME"

@{environment}
@{setup}

mapfile -t arguments < "$run/slurm/arguments.txt"
exec srun @{srun_options} --input=none \
    @{python} -m lvm evaluate "${arguments[@]}" --shard "$SLURM_ARRAY_TASK_ID/@{tasks}"
