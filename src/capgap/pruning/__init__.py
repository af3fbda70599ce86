"""
Structured width pruning of Hugging Face causal language models.

families.py    which dimension of which tensor carries key-value groups, neurons, hidden channels
importance.py  how much each of these units matters to the loss, and which ones to keep
solver.py      a number of parameters -> how many units to keep; arithmetic only
surgery.py     cut the other units out of the weights
refit.py       fit the remaining weights (refit_sites.py) to the full model's outputs, by layers (layerwise.py),
               by least squares (least_squares.py), in principal components (residual_basis.py)

A *group* is a key-value head with the query heads that read it: the unit in which attention can be
cut and still be grouped evenly. Without grouped queries a group is one head.
"""
