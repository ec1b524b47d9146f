"""Imported before numpy in processes of our own: the numeric libraries start no threads, pyarrow loads no pandas."""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

from shards.heap import without_pandas  # noqa: E402  it loads numpy

without_pandas()
