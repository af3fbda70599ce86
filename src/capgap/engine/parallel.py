"""
The processes of one training job: this one alone, or those that torchrun started.

Each takes its part of every global batch, so the data of a step do not depend on their number.
Models are copied to every process (DDP) or shared out among them (FSDP2). Only the first process
writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from capgap.engine.forward import decoder_layers
from capgap.engine.models import compute_device
from capgap.errors import CapgapError

CPU = torch.device("cpu")


class Whole(torch.nn.Module):
    """A model whose forward pass is whatever is computed on it: `whole(function, ...)`.

    DDP and FSDP act on forward passes of the module they wrap. Hidden states and the weights of the
    output head, from which losses are computed, must both be had within one.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable, *arguments: Any) -> Any:
        """The function's result on the model."""
        return function(self.model, *arguments)


@dataclass(frozen=True)
class World:
    """Where a training job runs. rank: of this process among `size`. shard: FSDP2, not DDP."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    shard: bool = False

    @property
    def shares(self) -> bool:
        """Whether models lie in parts on several processes."""
        return self.shard and self.size > 1

    def place(
        self, model: torch.nn.Module, prepare: Callable[[torch.nn.Module], None] = lambda part: None
    ) -> torch.nn.Module:
        """Move a model to this process's device; with `shard`, keep a part of its weights there.

        prepare: called on every layer, then on the model, before it moves.
        """
        whole = Whole(model)
        if not self.shares:
            prepare(model)
            whole.to(self.device)
        else:  # which moves one layer at a time, for the whole may not fit
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.size,))
            for layer in decoder_layers(model):
                prepare(layer)
                fully_shard(layer, mesh=mesh)
            prepare(model)
            fully_shard(whole, mesh=mesh)
        return whole

    def learner(self, whole: torch.nn.Module) -> torch.nn.Module:
        """The same for a model that learns: gradients become means over the processes."""
        if self.size == 1 or self.shares:
            return whole
        return DistributedDataParallel(
            whole, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def accumulating(self, whole: torch.nn.Module) -> AbstractContextManager:
        """Around all but the last micro-batch of a step: DDP need not exchange gradients yet."""
        return whole.no_sync() if isinstance(whole, DistributedDataParallel) else nullcontext()

    def settle(self, whole: torch.nn.Module) -> None:
        """After a forward pass that no backward pass follows: FSDP holds whole weights until then."""
        if self.shares:
            whole.reshard()

    def part(self, sequences: int) -> slice:
        """The sequences of a global batch that are this process's; CapgapError for unequal parts."""
        each, rest = divmod(sequences, self.size)
        if rest:
            raise CapgapError(
                f"batch_tokens: {sequences} sequences cannot be shared equally among {self.size} "
                "processes; change batch_tokens or the number of processes"
            )
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the processes, on each of them."""
        if self.size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def agree(self, *wishes: bool) -> list[bool]:
        """For every wish whether any process has it; all get the same answer."""
        if self.size == 1:
            return list(wishes)
        return (self.sum(torch.tensor(wishes, dtype=torch.int32)) > 0).tolist()

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.sum(torch.zeros(1))


ALONE = World()


@contextmanager
def join(shard: bool = False) -> Iterator[World]:
    """The world of this process, from the environment that torchrun sets.

    A GPU is used where there is one, in order of the processes of this machine.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = compute_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield World(rank, size, device, shard)
    torch.distributed.destroy_process_group()


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may lie in parts on all processes, all of which must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def like(tensor: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor, laid out over the processes as another one is."""
    if not hasattr(tensor, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(tensor.device)
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)  # pyright: ignore[reportAttributeAccessIssue]
