"""
Run a model layer by layer: all batches of a block pass a layer before the next one is touched.

So only one layer of a model has to be in memory at a time, which `load_streamed` reads from disk while
the layer before it computes. The forward pass stays the model's own: its layers are replaced by
stand-ins, first to see what enters the first layer and with which arguments each layer is called, and
at the end to hand the last layer's output to what follows. A whole model is run by the same functions
and its numbers are the same, because each layer sees the same batches.
"""

# B sequences, T tokens, D hidden channels, L layers

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from capgap.config.devices import FITS_SHARE, STREAMS_SHARE
from capgap.engine.forward import decoder_layers, hold_frozen, output_form
from capgap.engine.memory_limit import available_bytes, map_large_tensors
from capgap.engine.models import NotOneByOne, compute_device, load_hollow, load_model, load_shape
from capgap.engine.onednn_matmul import use_onednn
from capgap.engine.stored_tensors import StoredTensors
from capgap.engine.stream_file import StreamFile
from capgap.errors import CapgapError

READERS = 4  # tensors that are read at a time
FLOAT = 4  # bytes
Call = tuple[tuple, dict]  # arguments of a layer after the residual stream


class Batch(NamedTuple):
    """A batch on its way through the layers."""

    calls: list[Call]  # of every layer
    stream: torch.Tensor  # what enters the first layer, B x T x D


class _StandIn(torch.nn.Module):
    """Takes a layer's place in the model's own forward pass; all else is asked of the layer."""

    def __init__(self, layer: torch.nn.Module, act: Callable[[tuple, dict], Any]):
        super().__init__()
        object.__setattr__(self, "replaced", layer)  # which must not become a submodule
        self.act = act

    def forward(self, *args, **kwargs):
        return self.act(args, kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "replaced"), name)


class _Reached(Exception):
    """The forward pass has come to the end of the layers."""


class LayerByLayer:
    """A model whose layers are run one at a time.

    stored: where the layers' tensors are read from; None if they are in memory. scratch: folder for
    what a pass has to keep of all layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stored: StoredTensors | None = None,
        *,
        precision: str = "float32",
        scratch: Path | None = None,
    ):
        self.model, self.stored, self.precision = model, stored, precision
        self.scratch = scratch
        self.list = decoder_layers(model)
        self.layers = list(self.list)
        prefix = next(name for name, module in model.named_modules() if module is self.list)
        self.names = [
            [f"{prefix}.{i}.{name}" for name in layer.state_dict()]
            for i, layer in enumerate(self.layers)
        ]
        # entries of the tuple that a layer returns; 0 if it returns the stream alone
        self.tuples = 0

    # --- weights --------------------------------------------------------------------------------

    def resident(self, order: Iterable[int]) -> Iterator[tuple[int, torch.nn.Module]]:
        """Layers in this order, each in memory until the next is asked for, while that is read."""
        order = list(order)
        if self.stored is None:
            yield from ((place, self.layers[place]) for place in order)
            return
        with ThreadPoolExecutor(READERS) as pool:
            coming = self._begin_reading(pool, order[0])
            for place, following in zip(order, [*order[1:], None], strict=True):
                self._fill(place, coming)
                coming = {} if following is None else self._begin_reading(pool, following)
                try:
                    yield place, self.layers[place]
                finally:
                    _empty(self.layers[place])

    def _begin_reading(self, pool: ThreadPoolExecutor, place: int) -> dict[str, Future]:
        pinned = self.model.device.type == "cuda"
        return {
            name: pool.submit(self.stored.read, name, pinned=pinned) for name in self.names[place]
        }

    def _fill(self, place: int, coming: dict[str, Future]) -> None:
        """Give a layer the tensors that are being read."""
        layer = self.layers[place]
        for name, own in zip(self.names[place], layer.state_dict(), strict=True):
            put(layer, own, coming.pop(name).result(), self.model.device, self.precision)

    # --- passes ---------------------------------------------------------------------------------

    @contextmanager
    def _standing(self, act: Callable[[int, tuple, dict], Any]) -> Iterator[None]:
        """Have `act` stand in for every layer: (number of the layer, arguments)."""
        for place, layer in enumerate(self.layers):
            self.list[place] = _StandIn(layer, lambda a, k, place=place: act(place, a, k))
        try:
            yield
        finally:
            for place, layer in enumerate(self.layers):
                self.list[place] = layer

    def _returned(self, stream: torch.Tensor):
        return (stream, *[None] * (self.tuples - 1)) if self.tuples else stream

    def probe(self) -> None:
        """Check that the model can be run layer by layer, and find the form of its logits.

        Both from passes in which the first layer is the only one: what follows the layers does not
        depend on them, and a layer that looks at later tokens shows it by itself.
        """
        name = type(self.model).__name__

        def act(place, args, kwargs):
            if place:
                return self._returned(_stream_of(name, args, kwargs)[0])
            output = self.layers[0].forward(*args, **kwargs)  # past hooks of the layer
            self.tuples = len(output) if isinstance(output, tuple) else 0
            stream = output[0] if self.tuples else output
            more = [x for x in output[1:] if x is not None] if self.tuples else []
            if more or not isinstance(stream, torch.Tensor):
                raise CannotStream(f"{name}: {CANNOT} (a layer returns more than one tensor){HINT}")
            return output

        ids_BT = torch.arange(2, device=self.model.device).view(1, 2)
        with torch.no_grad():
            for _ in self.resident([0]):
                as_held = autocast(self.model, self.precision)
                with self._standing(act), use_onednn(), as_held:
                    self.model(input_ids=ids_BT, use_cache=False)
                    output_form(self.model)
        self.start(ids_BT)

    def start(self, ids_BT: torch.Tensor) -> Batch:
        """What enters the first layer, and with which arguments every layer is called.

        Raises CapgapError for a model that does something between its layers.
        """
        name, calls, handed = type(self.model).__name__, [], []
        last = len(self.layers) - 1

        def act(place, args, kwargs):
            stream, args, kwargs = _stream_of(name, args, kwargs)
            if handed and (stream is not handed[-1] or _any_of(handed, (args, kwargs))):
                raise CannotStream(f"{name}: {CANNOT} (something happens between its layers){HINT}")
            calls.append((args, kwargs))
            if place == last:
                raise _Reached(stream)
            handed.append(stream.view_as(stream))
            return self._returned(handed[-1])

        try:
            with self._standing(act), use_onednn(), autocast(self.model, self.precision):
                self.model(input_ids=ids_BT, use_cache=False)
        except _Reached as reached:
            if len(calls) == len(self.layers):
                return Batch(calls, reached.args[0])
        raise CannotStream(f"{name}: {CANNOT} (its layers are not called one after another){HINT}")

    def run(
        self, place: int, batch: Batch, stream: torch.Tensor, *, again: bool = False
    ) -> torch.Tensor:
        """The stream behind a layer. again: the layer's own hooks have seen it; those inside see it."""
        args, kwargs = batch.calls[place]
        layer = self.layers[place].forward if again else self.layers[place]
        with autocast(self.model, self.precision):
            output = layer(stream, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    @contextmanager
    def ending(self, stream: torch.Tensor) -> Iterator[None]:
        """A forward pass of the model inside has this stream behind its last layer."""
        last = len(self.layers) - 1

        def act(place, args, kwargs):
            entered = args[0] if args else kwargs["hidden_states"]
            return self._returned(stream if place == last else entered)

        with self._standing(act):
            yield

    def blocks(self, batches: Iterable[tuple], *, kept_layers: int = 0) -> Iterator[list[tuple]]:
        """Batches, inputs first, in blocks that pass the layers together.

        kept_layers: how many layers' inputs are kept on disk for each token.
        """
        block, held = [], 0
        most = self._block_tokens(kept_layers) if self.stored is not None else 1
        for batch in batches:
            if block and held + batch[0].numel() > most:
                yield block
                block, held = [], 0
            block.append(batch)
            held += batch[0].numel()
        if block:
            yield block

    def _block_tokens(self, kept_layers: int) -> int:
        """Tokens whose streams fit, in memory and, of all layers, on the disk."""
        each = 2 * FLOAT * self.model.config.hidden_size
        most = STREAMS_SHARE * available_bytes(self.model.device) / each
        if kept_layers and self.scratch is not None:
            free = shutil.disk_usage(self.scratch).free
            most = min(most, STREAMS_SHARE * free / (each * kept_layers / 2))
        return int(most)

    def keep(self, shapes: list[tuple[int, ...]]) -> StreamFile | dict[int, torch.Tensor]:
        """A place for what enters every layer, of batches with these shapes: L x batches tensors.

        On disk if the layers are there, else in memory.
        """
        if self.stored is None:
            return {}
        return StreamFile(shapes * len(self.layers), self.scratch, self.model.device)

    @torch.no_grad()
    def passed(
        self, block: list[tuple], asked: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple]:
        """The batches of a block, each while the model's forward pass of its inputs can be run.

        None, if between two layers it is asked to end.
        """
        begun = [self.start(batch[0].to(self.model.device)) for batch in block]
        streams = [one.stream for one in begun]
        with use_onednn():
            for place, _ in self.resident(range(len(self.layers))):
                if asked():
                    return
                for number, one in enumerate(begun):
                    streams[number] = self.run(place, one, streams[number])
        for number, batch in enumerate(block):
            with self.ending(streams[number]):
                yield batch
            streams[number] = None


class CannotStream(CapgapError):
    """A model cannot be run layer by layer."""


CANNOT = "it cannot be run layer by layer"
HINT = "; run it where it fits whole"


def _stream_of(name: str, args: tuple, kwargs: dict) -> tuple[torch.Tensor, tuple, dict]:
    """The residual stream among the arguments of a layer, and the others."""
    if args:
        return args[0], args[1:], kwargs
    if "hidden_states" not in kwargs:
        raise CannotStream(f"{name}: {CANNOT} (its layers take no hidden_states){HINT}")
    return kwargs["hidden_states"], (), {k: v for k, v in kwargs.items() if k != "hidden_states"}


def _any_of(tensors: list[torch.Tensor], found: Any) -> bool:
    """Whether one of the tensors is found among arguments."""
    if isinstance(found, dict):
        found = tuple(found.values())
    if isinstance(found, tuple | list):
        return any(_any_of(tensors, one) for one in found)
    return any(found is one for one in tensors)


@torch.no_grad()
def put(
    module: torch.nn.Module, name: str, stored: torch.Tensor, device: torch.device, precision: str
) -> None:
    """Put a tensor into its place in a module, as the precision holds it (see `hold_frozen`)."""
    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    if own in owner._buffers:
        dtype = owner._buffers[own].dtype
        owner._buffers[own] = stored.to(device, dtype)
        return
    matrix = stored.ndim >= 2 and not isinstance(owner, torch.nn.Embedding)
    dtype = getattr(torch, precision) if matrix else torch.float32
    if not stored.is_floating_point():
        dtype = stored.dtype
    # a new parameter, because a graph may still hold the one before it
    owner._parameters[own] = torch.nn.Parameter(stored.to(device).to(dtype), requires_grad=False)


def _empty(module: torch.nn.Module) -> None:
    """Give up the parameters of a layer; its graph, if there is one, keeps them as long as it lives."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                hollow = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
                owner._parameters[name] = hollow


_LAYER_BY_LAYER: WeakKeyDictionary[torch.nn.Module, LayerByLayer] = WeakKeyDictionary()


def layer_by_layer(model: PreTrainedModel, precision: str = "float32") -> LayerByLayer:
    """How a model is run by layers: from disk if it was loaded so, else from memory."""
    if model not in _LAYER_BY_LAYER:
        whole = LayerByLayer(model, precision=precision)
        whole.probe()
        return whole
    return _LAYER_BY_LAYER[model]


def is_streamed(model: torch.nn.Module) -> bool:
    """Whether the layers of a model lie on disk."""
    return model in _LAYER_BY_LAYER


def autocast(model: PreTrainedModel, precision: str) -> torch.autocast:
    """Inside, matmuls are computed in this precision."""
    enabled = precision == "bfloat16"
    return torch.autocast(model.device.type, torch.bfloat16, enabled=enabled)


def load_unread(folder: Path) -> PreTrainedModel:
    """A model to be taken apart: its weights are read from disk when `weight_of` asks for them.

    Those that transformers puts together from several tensors are loaded, in their stored type.
    """
    map_large_tensors()
    try:
        model, stored = load_hollow(folder)
    except NotOneByOne:
        return load_model(folder, dtype=None)
    _LAYER_BY_LAYER[model] = LayerByLayer(model, stored)
    return model


def weight_of(model: PreTrainedModel, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """The value of a parameter; one on disk is read, as it is stored."""
    if parameter.is_meta:
        return _LAYER_BY_LAYER[model].stored.read(name)
    return parameter.detach()


def ready(
    model: PreTrainedModel,
    batches: Iterable[tuple],
    asked: Callable[[], bool] = lambda: False,
) -> Iterator[tuple]:
    """The same batches, inputs first, each at a time when the model can be run on its inputs.

    Of a model whose layers lie on disk as many pass the layers together as fit into memory. asked:
    whether to end early; it is looked at between layers.
    """
    if not is_streamed(model):
        yield from batches
        return
    streamed = _LAYER_BY_LAYER[model]
    for block in streamed.blocks(batches):
        yield from streamed.passed(block, asked)
        if asked():
            return


def load_frozen(
    folder: Path, precision: str, *, stream: bool = False, scratch: Path | None = None
) -> PreTrainedModel:
    """A model that will not learn, on this process's device and in its precision (`hold_frozen`).

    stream: leave its layers on disk; else they are left there if the model does not fit into the
    memory that is free. scratch: folder for what passes between layers, the temporary one if None.
    """
    device = compute_device()
    size = {"float32": 4, "bfloat16": 2}[precision]
    needed = sum(parameter.numel() for parameter in load_shape(folder).parameters()) * size
    free = available_bytes(device)
    if not stream and needed > FITS_SHARE * free:
        print(
            f"{folder}: {needed / 1e9:.1f} GB of weights in {precision}, {free / 1e9:.1f} GB free: "
            "run layer by layer from disk",
            flush=True,
        )
        stream = True
    if not stream:
        if precision == "float32":
            return load_model(folder).to(device)
        model = load_model(folder, dtype=None)
        output_form(model)  # probed while all its weights have one type
        hold_frozen(model, precision)
        return model.to(device)
    map_large_tensors()  # before the hollow model, whose parameters have memory for a moment
    return _streamed(
        *load_hollow(folder), precision, device, scratch or Path(tempfile.gettempdir())
    )


def load_by_layer(folder: Path, scratch: Path) -> PreTrainedModel:
    """A model in float32 whose layers lie on disk, or in memory if it cannot be read one by one."""
    try:
        return load_frozen(folder, "float32", stream=True, scratch=scratch)
    except NotOneByOne:
        return load_frozen(folder, "float32")


def _streamed(model, stored: StoredTensors, precision: str, device, scratch) -> PreTrainedModel:
    """A model with everything but its layers in memory."""
    put_ends(model, stored, precision, device)
    by_layer = LayerByLayer(model.eval(), stored, precision=precision, scratch=scratch)
    _LAYER_BY_LAYER[model] = by_layer
    try:
        by_layer.probe()
    except BaseException:
        del _LAYER_BY_LAYER[model]
        raise
    return model


def put_ends(
    model: PreTrainedModel, stored: StoredTensors, precision: str, device: torch.device
) -> None:
    """Read everything of a model but its layers into memory.

    Raises CannotStream if layers share weights.
    """
    inside = {name for names in LayerByLayer(model).names for name in names}
    _refuse_shared_layers(model)
    for name, buffer in model.named_buffers():
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._buffers[own] = buffer.to(device)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    filled: dict[int, torch.nn.Parameter] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in inside:
            continue
        path, _, own = name.rpartition(".")
        owner = model.get_submodule(path)
        if id(tensor) not in filled:
            # an output head that is tied is held as the table of embeddings is
            held = "float32" if id(tensor) in tables else precision
            put(model, name, stored.read(name), device, held)
            filled[id(tensor)] = getattr(owner, own)
        elif own in owner._parameters:
            owner._parameters[own] = filled[id(tensor)]


def _refuse_shared_layers(model: PreTrainedModel) -> None:
    seen: dict[int, int] = {}
    for place, layer in enumerate(decoder_layers(model)):
        for parameter in layer.parameters():
            if seen.setdefault(id(parameter), place) != place:
                raise CannotStream(
                    f"{type(model).__name__}: {CANNOT} (its layers share weights){HINT}"
                )
