"""Training and evaluation of language models on token streams."""
