"""
The contract that makes Snakemake and DVC agree.

digest.py   source_digest(stage): what a stage's code does, as one number. Without it an edit of a
            library function would leave stale results in place, for Snakemake never sees imports.
planning.py spec(stage, settings): the one parameter of a rule. Without it Snakemake would compare
            unnamed values and miss swapped ones.
"""
