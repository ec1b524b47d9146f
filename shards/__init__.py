"""From image folders to tar shards: scan, clean, split, pack, index, verify. Imports no torch."""
