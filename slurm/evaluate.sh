#!/bin/bash
# One evaluation, on one GPU or none. `lvm launch kind=evaluate ...` fills in what stands in @{...}.
#SBATCH --job-name=@{name}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=@{cpus_per_task}
#SBATCH --time=@{time}
#SBATCH --chdir="@{folder}"
#SBATCH --output="@{run_dir}/logs/job.log"
#SBATCH --open-mode=append
#SBATCH --requeue
@{options}

run="@{run_dir}"
echo "$(date +%FT%T) job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on $SLURMD_NODENAME"

@{environment}
@{setup}

mapfile -t arguments < "$run/slurm/arguments.txt"
exec srun @{srun_options} --input=none \
    @{python} -m lvm evaluate "${arguments[@]}"
