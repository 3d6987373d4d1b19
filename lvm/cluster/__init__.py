"""Runs on a cluster: Slurm, launching, the list of runs, sweeps and the laws they end in."""
