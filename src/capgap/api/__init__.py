"""
What `import capgap as cg` offers, thin over the stages and the library below.

pipeline           models in folders: load, pack, score, prune, distill, evaluate, cache_teacher
own_loop           distillation_loss, for a training loop of one's own
hf_trainer         DistillationTrainer, for the Trainer of transformers and of TRL
laws               fit_law, recommend, plot
results_returned   what these return
undisturbed        a call leaves the process as it was
keyword_settings   settings as keyword arguments

Only `capgap/__init__.py` and its stub name them; stages import nothing from here.
"""
