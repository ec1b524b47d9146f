"""A finished run as a file for other programs, checked against the run before it is called done."""
