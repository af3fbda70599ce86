"""
Layers compiled for one shape, that of a micro-batch; others, like the last window of a text, are run
as they are.

A second shape would make torch.compile take sizes as variables, which costs speed on every step, and
each further kind of pass compiles again.
"""

# B sequences, T tokens

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from capgap.config import Training
from capgap.engine.forward import decoder_layers

COMPILER = "inductor"


def micro_batch_shape(settings: Training, processes: int = 1) -> tuple[int, int]:
    """(B, T) of a micro-batch of one process."""
    length = settings.sequence_length
    own = settings.batch_tokens // length // processes
    return min(own, (settings.micro_batch_tokens or settings.batch_tokens) // length), length


def compile_layers(model: PreTrainedModel, shape: tuple[int, int]) -> None:
    """Compile the layers of a model for streams of shape B x T x channels."""
    for layer in decoder_layers(model):
        layer.forward = _one_shape(type(layer).forward.__get__(layer), shape)


def _one_shape(forward, shape: tuple[int, int]):
    compiled = torch.compile(forward, backend=COMPILER, dynamic=False)

    def run(*args, **kwargs):
        stream = args[0] if args else kwargs["hidden_states"]
        return (compiled if tuple(stream.shape[:2]) == shape else forward)(*args, **kwargs)

    return run
