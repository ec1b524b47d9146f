"""Search for good settings: what is tried, in which order, by which processes, and the report of it."""
