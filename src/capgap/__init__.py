"""capgap: measure the law of capacity gap in distillation, test it, and use it."""

import os

# Large tensors in huge pages, where Linux grants them: far fewer page faults. torch reads it once.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
