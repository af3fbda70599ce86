"""
Structured width pruning of Hugging Face causal language models.

families    the dimension of each tensor that carries KV-head groups, neurons or hidden channels
criteria    four importance scores of these units; importance runs one, store keeps it on disk
solver      from a target size to the number of units to keep; arithmetic only
selection   from scores and numbers to the units to keep
surgery     cuts the other units out of the weights
refit       fits the remaining weights (refit_sites) to the full model's outputs, layer by layer
            (layerwise), by least squares (least_squares), in principal components (residual_basis)
vocabulary  trims the vocabulary to the entries that a text uses

A *group* is a key-value head with the query heads that read it: the unit in which attention can be
cut and still be grouped evenly. Without grouped queries a group is one head.
"""
