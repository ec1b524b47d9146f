"""Imported before numpy, it keeps a process to one thread: the numeric libraries then start no others."""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
