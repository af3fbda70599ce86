"""
What a loss needs of a model's forward pass: what enters the output head, and how logits follow.

The model's own forward pass is run and what enters its head is taken from it, so whatever lies before
the head is computed by the model itself. What lies behind the head is found once a model by a probe:
the head's output is replaced by known numbers, and the logits are compared with a scale and a soft
cap of them. If they agree, losses are computed from hidden states by chunks; if not, from
the logits of the whole forward pass, which takes tokens x vocabulary of memory.
"""

# B sequences, T tokens, D hidden channels, V entries of the vocabulary

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel, masking_utils

from capgap.engine.losses import ModelOutput, cap_
from capgap.engine.mmap_weights import release
from capgap.engine.onednn_matmul import use_onednn
from capgap.errors import CapgapError, out_of_memory

PROBED_TOKENS = 8
POWERS = range(-13, 21)  # of two, which the head's output is replaced by: from linear to capped
# largest error of logits, relative to the largest of them, by the type that they are computed in
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class OutputForm:
    """How logits follow from what enters the head, x: cap x tanh(scale x head(x) / cap).

    dense: in no such way, so they are the whole forward pass's own.
    """

    dense: bool = False
    scale: float = 1.0
    cap: float | None = None

    def apply(self, head_output: torch.Tensor) -> torch.Tensor:
        """Logits from the output of the head."""
        return cap_(head_output * self.scale, self.cap)


_FORMS: WeakKeyDictionary[torch.nn.Module, OutputForm] = WeakKeyDictionary()


def output_form(model: PreTrainedModel) -> OutputForm:
    """The form of a model's logits, probed when it is first asked for.

    Raises CapgapError for a model whose logits cannot be had from token ids alone, or are not those
    of a causal language model.
    """
    if model not in _FORMS:
        training = model.training
        model.eval()
        try:
            _FORMS[model] = _probe(model)
        finally:
            model.train(training)
    return _FORMS[model]


@torch.no_grad()
def _probe(model: PreTrainedModel) -> OutputForm:
    ids_T = torch.arange(3, 3 + PROBED_TOKENS) % model.get_input_embeddings().weight.shape[0]
    ids_BT = torch.stack([ids_T, ids_T.roll(1).where(ids_T == ids_T[-1], ids_T)]).to(model.device)
    logits_BTV = _plain_logits(model, ids_BT)
    _check_causal(model, logits_BTV)
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        return OutputForm(dense=True)
    calls = []
    with head.register_forward_hook(lambda _, args, out: calls.append((args[0], out))):
        _logits_of(model, ids_BT)
    shape = (*ids_BT.shape, head.weight.shape[1])
    if len(calls) != 1 or calls[0][0].shape != shape or calls[0][1].shape != logits_BTV.shape:
        return OutputForm(dense=True)
    sizes = torch.tensor([2.0**power for power in POWERS], device=model.device)
    table = torch.cat([sizes, -sizes])
    index = torch.arange(logits_BTV.numel(), device=model.device) % len(table)
    known_BTV = table[index].view(logits_BTV.shape)
    with head.register_forward_hook(lambda *_: known_BTV.clone()):
        answer_BTV = _logits_of(model, ids_BT).float()
    form = _fitted(known_BTV, answer_BTV)
    if form is None:
        return OutputForm(dense=True)
    expected_BTV = form.apply(head(_head_input(model, ids_BT)))
    same = _error(expected_BTV, logits_BTV) <= TOLERANCE.get(head.weight.dtype, 1e-4)
    return form if same or not logits_BTV.isfinite().all() else OutputForm(dense=True)


def _fitted(known: torch.Tensor, answer: torch.Tensor) -> OutputForm | None:
    """Scale and cap that turn known outputs of the head into the logits; None if there are none."""
    if answer.shape != known.shape or not answer.isfinite().all():
        return None
    least, most = known.abs().argmin(), known.argmax()
    scale = (answer.flatten()[least] / known.flatten()[least]).item()
    highest = answer.flatten()[most].item()
    capped = highest < 0.99 * scale * known.max().item()
    if scale <= 0 or highest <= 0:
        return None
    form = OutputForm(scale=scale, cap=highest if capped else None)
    same = torch.allclose(form.apply(known), answer, rtol=1e-5, atol=1e-7)
    return form if same else None


def _plain_logits(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits of the whole forward pass; CapgapError if there are none."""
    name = type(model).__name__
    try:
        logits = _logits_of(model, ids_BT)
    except CapgapError:
        raise
    except Exception as error:  # which a model's code may raise of any kind
        if out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CapgapError(
            f"{name}: its logits cannot be computed from token ids alone ({reason}); take a causal "
            "language model"
        ) from None
    if logits is None or logits.ndim != 3 or logits.shape[:2] != ids_BT.shape:
        raise CapgapError(
            f"{name}: it does not give one logit for every token and entry of the vocabulary; take a "
            "causal language model"
        )
    return logits


def _check_causal(model: PreTrainedModel, logits_BTV: torch.Tensor) -> None:
    """Raise CapgapError if logits depend on the last token, in which two sequences differ."""
    before_BTV = logits_BTV[:, :-1].float()
    bound = 10 * TOLERANCE.get(logits_BTV.dtype, 1e-4)
    if before_BTV.isfinite().all() and _error(before_BTV[0], before_BTV[1]) > bound:
        raise CapgapError(
            f"{type(model).__name__}: its logits depend on later tokens, so it is not a causal "
            "language model and has no loss of the next token; take one (some need is_decoder: true "
            "in config.json)"
        )


def _error(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference over the largest magnitude of the second."""
    first, second = first.float(), second.float()
    return ((first - second).abs().max() / second.abs().max().clamp_min(1e-30)).item()


@contextmanager
def unpacked() -> Iterator[None]:
    """Within this context transformers does not look for several sequences in one row of positions.

    No positions are passed, so there is one; looking would wait for the GPU in every forward pass.
    """
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def _logits_of(call: torch.nn.Module, ids_BT: torch.Tensor, **others) -> torch.Tensor | None:
    with use_onednn(), unpacked():
        return getattr(call(input_ids=ids_BT, use_cache=False, **others), "logits", None)


def _head_input(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    wrapper: torch.nn.Module | None = None,
    **others: torch.Tensor,
) -> torch.Tensor:
    """What enters the output head, B x T x D; the head itself sees one token of each sequence."""
    kept = []

    def keep(_module, args):
        kept.append(args[0])
        return (args[0][:, :1].contiguous(),)  # else the head is copied for every sequence

    with model.get_output_embeddings().register_forward_pre_hook(keep):
        _logits_of(wrapper or model, ids_BT, **others)
    return kept[0]


def hidden_states(model: PreTrainedModel, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """What enters the output head, (B T) x D, of a model whose logits are not dense.

    A backward pass belongs into the same `use_onednn`.
    """
    return _head_input(model, input_ids_BT).flatten(0, 1)


def output_head(model: PreTrainedModel) -> torch.Tensor:
    """Weights of the output head, V x D."""
    return model.get_output_embeddings().weight


def model_output(
    model: PreTrainedModel,
    input_ids_BT: torch.Tensor,
    *,
    precision: str = "float32",
    vocab: int | None = None,
    wrapper: torch.nn.Module | None = None,
    **others: torch.Tensor,
) -> ModelOutput:
    """What a loss is computed from, of (B T) tokens: exactly the logits of the model's forward pass.

    precision: float32, or bfloat16 or float16 for mixed precision: matmuls of the forward
    pass, hidden states and head. vocab: size of the tokenizer; further rows of the head, which makers
    add to get a round number, are no tokens and left out. wrapper: a module whose forward pass is
    the model's, like DDP's. others: further inputs of the model, like attention_mask.
    """
    form, dtype = output_form(model), getattr(torch, precision)
    mixed = dtype != torch.float32
    with torch.autocast(input_ids_BT.device.type, dtype if mixed else None, enabled=mixed):
        if form.dense:
            logits_NV = _logits_of(wrapper or model, input_ids_BT, **others).flatten(0, 1)
            return ModelOutput(logits_NV[:, :vocab].to(dtype).contiguous(), None)
        hidden_ND = _head_input(model, input_ids_BT, wrapper, **others).flatten(0, 1)
    head = model.get_output_embeddings()
    return through_head(hidden_ND.to(dtype), head.weight, head.bias, form=form, vocab=vocab)


def through_head(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    *,
    form: OutputForm,
    vocab: int | None = None,
) -> ModelOutput:
    """Hidden states with a head, which is rounded to their type.

    A scale goes into the hidden states, and a bias of the head becomes one more channel, which is
    the scale in all hidden states. vocab: rows of the head that are tokens, all if None.
    """
    if form.scale != 1:
        hidden_ND = hidden_ND * form.scale
    head_VD = weight_VD if vocab is None else weight_VD[:vocab]
    head_VD = head_VD.to(hidden_ND.dtype)
    if bias_V is not None:
        bias_V1 = bias_V[: len(head_VD), None].to(hidden_ND.dtype)
        head_VD = torch.cat([head_VD, bias_V1], 1)
        ones_N1 = hidden_ND.new_full((len(hidden_ND), 1), form.scale)
        hidden_ND = torch.cat([hidden_ND, ones_N1], 1)
    return ModelOutput(hidden_ND, head_VD, form.cap)


@torch.no_grad()
def hold_frozen(model: torch.nn.Module, precision: str) -> None:
    """Hold the weights of a model, or of a part, that will not learn, as its precision computes.

    float32: all in float32. bfloat16: the matrices of matmuls, which autocast would round anew for
    every pass, rounded once. Embeddings, norms and buffers, and so what passes from layer to layer,
    are float32 in both.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters()
    }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        matrix = parameter.ndim >= 2 and id(parameter) not in tables
        dtype = getattr(torch, precision) if matrix else torch.float32
        if parameter.dtype != dtype:
            stored, parameter.data = parameter.data, parameter.data.to(dtype)
            release(stored)


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The layers of a model, which are alike."""
    depth = model.config.num_hidden_layers
    return next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    )
