#!/bin/bash
# An array of trainings on one GPU (or none) each: task i adds the overrides of members/i.txt to those that all share.
# `lvm launch kind=sweep members=FILE ...` fills in what stands in @{...}. Submitting again continues the members
# that are not finished; for sweeps that wait for each other's results see docs/slurm.md.
#SBATCH --job-name=@{name}
#SBATCH --array=0-@{last_task}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@{cpus_per_task}
#SBATCH --time=@{time}
#SBATCH --chdir="@{folder}"
#SBATCH --output="@{run_dir}/logs/member-%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@@{signal_seconds}
@{options}

run="@{run_dir}"
echo "$(date +%FT%T) job $SLURM_JOB_ID, member $SLURM_ARRAY_TASK_ID, start ${SLURM_RESTART_COUNT:-0}, on $SLURMD_NODENAME"

@{environment}
@{setup}

mapfile -t overrides < "$run/slurm/overrides.txt"
mapfile -t own < "$run/slurm/members/$SLURM_ARRAY_TASK_ID.txt"
exec srun @{srun_options} --input=none \
    @{python} -m lvm train "${overrides[@]}" "${own[@]}"
