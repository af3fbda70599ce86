"""The law of two causes: what a better teacher gains against what heavier pruning costs."""
