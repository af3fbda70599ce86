"""The power law T* ~ S^a D^b: its curve, its fit to all runs at once, its noise, its diagnostics."""
