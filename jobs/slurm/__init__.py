"""Running on Slurm: cluster files, one description of a job and its two renderings, and what happens when one ends."""
