"""
The processes of one job: this one alone, or those that torchrun started.

Each takes its part of every global batch, so the data of a step do not depend on their number.
Models are replicated (DDP) or sharded (FSDP2): on several nodes among the processes of a node, with
copies across nodes (HSDP), because layers are gathered far more often than gradients are summed. Only
the first process writes.

A job that measures a model deals independent batches to its processes, which have a copy of it each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from capgap.config.devices import COLLECTIVE_TIMEOUT_MINUTES, COLLECTIVE_VARIABLE
from capgap.engine.forward import decoder_layers
from capgap.engine.models import compute_device
from capgap.engine.shared_loading import read_own
from capgap.errors import CapgapError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Item = TypeVar("Item")
CPU = torch.device("cpu")
INTERFACES = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}  # of the network to use


class ForwardWrapper(torch.nn.Module):
    """Runs a function of a model as a forward pass: `wrapper(function, ...)`.

    DDP and FSDP act on forward passes of the module they wrap. A loss is computed from hidden states
    and the weights of the output head, so both must be read within one forward pass.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable, *arguments: Any) -> Any:
        """The function's result on the model."""
        return function(self.model, *arguments)


@dataclass(frozen=True)
class DistContext:
    """The processes of a job. rank: of this process among `size`. shard: FSDP2, not DDP.

    nodes: machines, each with as many processes; ranks count through a node before the next one.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    shard: bool = False
    nodes: int = 1

    @property
    def is_sharded(self) -> bool:
        """Whether models are sharded over several processes."""
        return self.shard and self.size > 1

    @property
    def sharers(self) -> int:
        """Processes over which one copy of a model is sharded: those of a node, or all if each has a node."""
        each = self.size // self.nodes
        return each if each > 1 else self.size

    def mesh(self) -> DeviceMesh:
        """The processes as FSDP2 wants them: nodes x processes of a node, or all in one row.

        With one process a node a model can only be sharded over the nodes.
        """
        from torch.distributed.device_mesh import init_device_mesh

        if self.sharers < self.size:
            names, shape = ("replicate", "shard"), (self.nodes, self.sharers)
            return init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        return init_device_mesh(self.device.type, (self.size,))

    def distribute(
        self,
        model: torch.nn.Module,
        prepare: Callable[[torch.nn.Module], None] = lambda part: None,
        precision: str = "float32",
    ) -> torch.nn.Module:
        """Wrap a model and move it to this process's device; with `shard`, only its own shard.

        The weights of one that was loaded to be shared (`load_to_share`) are read now.

        prepare: called on every layer, then on the model, before it moves. precision: in bfloat16 the
        layers of a sharded model are gathered so; gradients are summed in float32.
        """
        whole = ForwardWrapper(model)
        if not self.is_sharded:
            prepare(model)
            whole.to(self.device)
        else:  # layers are moved one at a time, because the whole model may not fit
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

            mesh = self.mesh()
            # else autocast would cast whole layers, and their copies would stay for the backward pass
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            options = {"mp_policy": policy} if precision == "bfloat16" else {}
            for layer in decoder_layers(model):
                prepare(layer)
                fully_shard(layer, mesh=mesh, **options)
            prepare(model)
            fully_shard(whole, mesh=mesh)
            read_own(whole, model, self.device)
        return whole

    def data_parallel(self, whole: torch.nn.Module) -> torch.nn.Module:
        """Wrap a model that is trained, so that gradients are averaged over the processes."""
        if self.size == 1 or self.is_sharded:
            return whole
        return DistributedDataParallel(
            whole, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def micro_batch(self, whole: torch.nn.Module, *, last: bool) -> AbstractContextManager:
        """Context of a micro-batch; gradients are exchanged in the last one of a step only."""
        if self.is_sharded:
            whole.set_requires_gradient_sync(last)
        elif isinstance(whole, DistributedDataParallel) and not last:
            return whole.no_sync()
        return nullcontext()

    def reshard(self, whole: torch.nn.Module) -> None:
        """Release the unsharded weights that FSDP keeps after a forward pass without a backward."""
        if self.is_sharded:
            whole.reshard()

    def own_sequences(self, sequences: int) -> slice:
        """This process's sequences of a global batch. Raises CapgapError if parts are unequal."""
        each, rest = divmod(sequences, self.size)
        if rest:
            raise CapgapError(
                f"batch_tokens: {sequences} sequences cannot be shared equally among {self.size} "
                "processes; change batch_tokens or the number of processes"
            )
        return slice(self.rank * each, (self.rank + 1) * each)

    def deal(self, items: Iterable[Item]) -> Iterator[Item]:
        """This process's items, every `size`-th one.

        Processes that hold shards of a model have to run it together, so all get as many: those that would have
        fewer get the last item once more.
        """
        count, item = 0, None
        for count, item in enumerate(items, 1):
            if (count - 1) % self.size == self.rank:
                yield item
        if self.is_sharded and 0 < count % self.size <= self.rank:
            yield item

    def in_order(self, mine: list[float], count: int) -> list[float]:
        """The values of all `count` items that were dealt, in their order, given this process's own."""
        values = torch.zeros(count, dtype=torch.float64)
        own = values[self.rank :: self.size]
        own.copy_(torch.tensor(mine[: len(own)], dtype=torch.float64))
        return self.sum(values).tolist()  # all but one are zero, so nothing is rounded

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes (all-reduce); every process gets it."""
        if self.size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def each(self, mine: bytes) -> list[bytes]:
        """The bytes of every process, equally many, by rank."""
        rows = torch.zeros(self.size, len(mine), dtype=torch.uint8)
        rows[self.rank] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        return [bytes(row.tolist()) for row in self.sum(rows)]

    def any_process(self, *flags: bool) -> list[bool]:
        """For every flag, whether any process has set it; all processes get the same answer."""
        if self.size == 1:
            return list(flags)
        return (self.sum(torch.tensor(flags, dtype=torch.int32)) > 0).tolist()

    def agree(self, error: Exception | None, what: str) -> None:
        """Raise this process's error, or CapgapError if another one has an error; else go on together.

        An error that one process raises alone leaves the others waiting for it. what: that failed.
        """
        if self.any_process(error is not None)[0]:
            raise error or CapgapError(
                f"{what} failed in another process of the job, whose message gives the reason"
            )

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.sum(torch.zeros(1))


ONE_PROCESS = DistContext()


def will_share(shard: bool) -> bool:
    """Whether this job has several processes, which will shard models if `shard` is set."""
    return shard and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def join(shard: bool = False) -> Iterator[DistContext]:
    """Yield this process's context, from the environment that torchrun sets.

    Each process of a machine uses the GPU of its local rank, or the CPU. Raises CapgapError if another
    process of the job has ended, does not answer in time, or cannot be reached.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = compute_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield DistContext(device=device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    minutes = _longest_wait_minutes()
    try:
        torch.distributed.init_process_group(backend, timeout=timedelta(minutes=minutes))
        nodes = size // int(os.environ.get("LOCAL_WORLD_SIZE", size))
        yield DistContext(rank, size, device, shard, nodes)
    except RuntimeError as error:  # DistBackendError and DistNetworkError are of its kind
        lost = isinstance(error, torch.distributed.DistError)
        cause = _cause(str(error), backend, minutes, lost)
        if cause is None:
            raise
        said = " ".join(str(error).split())[:500]
        raise CapgapError(f"process {rank} of {size} {cause} ({said})") from error
    torch.distributed.destroy_process_group()


def _longest_wait_minutes() -> float:
    """How long a process waits for others; see `plan.collective_timeout_minutes`."""
    text = os.environ.get(COLLECTIVE_VARIABLE, str(COLLECTIVE_TIMEOUT_MINUTES))
    try:
        minutes = float(text)
        if not 0 < minutes < math.inf:
            raise ValueError(text)
    except ValueError:
        raise CapgapError(
            f"{COLLECTIVE_VARIABLE}: {text!r} is not a number of minutes above 0"
        ) from None
    return minutes


LOST = (
    *("closed by peer", "reset by peer", "Broken pipe", "Connection refused"),
    *("remote process exited", "NCCL communicator was aborted"),
    *("failed to recv", "failed to send"),  # the store of the first process
)
WAITED = (
    *("Timed out waiting", "timed out waiting", "timeout after", "socket has timed out"),
    *("waiting for clients", "Application timeout", "Watchdog caught collective"),
)
NO_INTERFACE = ("Unable to find address for", "no socket interface found")


def _cause(error: str, backend: str, minutes: float, lost: bool) -> str | None:
    """What an error shows about the other processes of the job; None if nothing.

    lost: whether the library that exchanges has raised it, which it also does for a process that ended.
    """
    interface = INTERFACES[backend]
    if "CUDA error" in error:
        return None
    if any(words in error for words in NO_INTERFACE):
        return (
            f"has no network interface to meet the others by; {interface} is "
            f"{os.environ.get(interface, 'not set')}: name one that every machine has (ip link)"
        )
    if any(words in error for words in WAITED):
        return (
            f"has waited {minutes:g} minutes for another one, which hangs, is slower than that or cannot "
            "be reached. Look at its machine (is the process there, does it compute, does its disk "
            f"answer) and at the network between the machines ({interface} chooses it); if it is only "
            "slow, raise plan.collective_timeout_minutes. Run again to go on from the last checkpoint"
        )
    if lost or any(words in error for words in LOST):
        return (
            "lost another one, which has ended; what ended it is said before or after this line. Run "
            "again to go on from the last checkpoint"
        )
    return None


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded; all processes must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]
