"""Training and evaluation of language models on token streams: what every GPU hour goes through."""
