"""A pipeline: steps that make each other's inputs, from one file, on this machine, SLURM or Ray."""
