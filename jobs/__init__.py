"""What people run: the `bloodcell` command line, recipes, launching, benchmarks."""
