"""A table of runs: read from any file, checked, on one scale, as means and as arrays."""
