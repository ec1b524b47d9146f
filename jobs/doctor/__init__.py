"""Is this machine, or are these nodes, fit for training: what is looked at on each, and what it means."""
