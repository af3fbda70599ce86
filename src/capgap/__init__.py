"""capgap: measure the law of capacity gap in distillation, test it, and use it."""

__version__ = "0.1.0"
