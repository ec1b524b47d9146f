"""Reproduce published systems: the rows, their runs, and the table of what was published and what came out."""
