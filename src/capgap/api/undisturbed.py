"""A call of the library leaves the process that it is made in as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from capgap.engine.models import compute_device
from capgap.stages.base import quiet_transformers

P = ParamSpec("P")
R = TypeVar("R")


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """A function after which threads, random numbers and messages of transformers are as before.

    Stages set these for a process of their own. What else they change (oneDNN's setting, the
    attention of models, the handler of SIGTERM) they put back themselves.
    """

    @wraps(function)
    def guarded(*arguments: P.args, **named: P.kwargs) -> R:
        threads, device = torch.get_num_threads(), compute_device()
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), quiet_transformers():
                return function(*arguments, **named)
        finally:
            torch.set_num_threads(threads)

    return guarded
