"""
Peak memory of a job in bytes, by kind. A teacher's matrices and what the backward pass needs count in
their precision, everything else as float32. In bfloat16 the matrices that learn have rounded copies.

Activations are what a Hugging Face model of the family keeps for the backward pass, counted layer
by layer in channels per token; a test compares them with the tensors that autograd saves. Attention
keeps queries, keys, values and its output, and on a CPU also the scores of short sequences
(`engine.attention` with oneDNN; counted on every CPU). The dropout of GPT-2 and OPT is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from capgap.config import Training
from capgap.config.shapes import chunk_tokens, class_chunk_tokens, gpu_chunk_tokens
from capgap.cost.architectures import TRAITS, Model

FLOAT = 4  # bytes
BYTES = {"float32": FLOAT, "bfloat16": 2}
TASK_CONTEXT = 1024  # tokens of a few-shot prompt with its answer, about
SCORE_TOKENS = 1024  # of a forward pass when scoring (pruning/importance.py)


@dataclass(frozen=True)
class Memory:
    """Bytes by kind of content."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    teacher: int = 0
    activations: int = 0  # grow with the micro-batch
    loss: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def saved_channels(model: Model, *, checkpointed: bool = False, scores: int = 0) -> int:
    """Floats per token that the backward pass needs, without those of the loss.

    checkpointed: activation checkpointing, which keeps the input of each layer and recomputes one
    layer at a time. scores: attention scores that are kept per token and head.
    """
    layer, ends = _layer_channels(model)
    layer += model.heads * scores
    if checkpointed:
        return layer + model.layers * model.hidden + ends
    return model.layers * layer + ends


def saved_bytes(
    model: Model, precision: str, *, checkpointed: bool = False, scores: int = 0
) -> int:
    """Bytes per token that the backward pass needs, without those of the loss; see `saved_channels`.

    In bfloat16 the residual stream and its norms stay float32; matmuls keep their own inputs, each a
    rounded copy, and all else that a layer keeps is rounded.
    """
    if precision == "float32":
        return FLOAT * saved_channels(model, checkpointed=checkpointed, scores=scores)
    half, traits = BYTES[precision], TRAITS[model.family]
    channels, ends = _layer_channels(model)
    # of each norm its input, and of the gated kind the normalised one; the projections' own inputs,
    # which in float32 are one tensor, are copies
    wide = 2 * (traits.norms if traits.gated else 1) * model.hidden
    if traits.head_norms != "none":
        wide += 2 * model.attention + 2 * model.key_value
    copies = ROUNDED_INPUTS.get(model.family, 5 if traits.gated else 2) * model.hidden
    narrow = channels - wide - 2 * model.hidden
    layer = FLOAT * wide + half * (copies + narrow) + half * model.heads * scores
    outside = FLOAT * (ends if traits.gated else model.hidden)
    if checkpointed:
        return layer + FLOAT * model.layers * model.hidden + outside
    return model.layers * layer + outside


ROUNDED_INPUTS = {"opt": 4}  # copies of the stream for matmuls: each of query, key, value and MLP


def _layer_channels(model: Model) -> tuple[int, int]:
    """Floats per token that one layer keeps, and that are kept outside the layers."""
    d, a, k, f = model.hidden, model.attention, model.key_value, model.neurons
    traits = TRAITS[model.family]
    if traits.gated:
        # each norm: input and normalised input; the input of the projections; rotated query and
        # key; value; attention's output; gate, its activation, up and their product
        layer = (2 + 2 * traits.norms) * d + 2 * a + 2 * k + 4 * f
        if traits.head_norms != "none":
            layer += 2 * a + 2 * k  # norms of query and key: input and normalised
        return layer, 3 * d
    # each norm: input and output; query, key, value, its output; copies of query and key where they
    # are rotated; steps of the MLP's activation
    rotated = (2, 2)  # of the GPT-NeoX kind, as Falcon is
    copies, activation = {"gpt2": (0, 5), "opt": (0, 1)}.get(model.family, rotated)
    return 4 * d + (4 + copies) * a + activation * f, 2 * d


def transient_channels(model: Model, scores: int = 0) -> int:
    """Floats per token that one layer holds in a forward pass without gradients."""
    channels = 3 * model.hidden + 2 * model.attention + 2 * model.key_value + 3 * model.neurons
    return channels + model.heads * scores


def training(
    student: Model,
    settings: Training,
    teacher: Model | None = None,
    *,
    processes: int = 1,
    shards: int = 1,
    scores: int = 0,
    on_gpu: bool = False,
) -> Memory:
    """Peak of one process of a training job with AdamW; `teacher` in distillation.

    scores: see `saved_channels`. shards: processes over which a model is sharded (FSDP), of which each gathers a
    layer at a time, embeddings and output head. on_gpu: the loss takes larger chunks, by PyTorch's
    operations in float32 (the kernel of Triton takes less).
    """
    batch = settings.batch_tokens // processes
    tokens = min(settings.micro_batch_tokens or batch, batch)
    by_device = (gpu_chunk_tokens if on_gpu else chunk_tokens)(student.vocab)
    chunk = min(settings.loss_chunk_tokens or by_device, tokens)
    saved = saved_bytes(
        student,
        settings.precision,
        checkpointed=settings.activation_checkpointing,
        scores=scores,
    )
    gradient_of_scores = student.heads * scores  # of one layer at a time
    parameters = FLOAT * math.ceil(student.params / shards)
    logits = FLOAT * chunk * student.vocab
    gradients_of_loss = FLOAT * student.hidden * (tokens + student.vocab)
    gradients = _held(student, "float32", shards)
    if shards > 1 and tokens < batch:  # micro-batches add to whole gradients, exchanged at the end
        gradients = FLOAT * student.params
    passing = 0
    if teacher:
        logits *= 3  # student's, teacher's, target distribution
        passing = FLOAT * tokens * (transient_channels(teacher, scores) + teacher.hidden)
    return Memory(
        weights=_held(student, "float32", shards) + _rounded(student, settings, shards),
        gradients=gradients,
        optimizer=2 * parameters,
        teacher=_held(teacher, settings.precision_of_teacher, shards) if teacher else 0,  # pyright: ignore[reportAttributeAccessIssue]
        activations=tokens * (saved + FLOAT * gradient_of_scores) + passing,
        loss=logits + gradients_of_loss,
    )


def _rounded(model: Model, settings: Training, shards: int) -> int:
    """Bytes of the rounded copies of the matrices that learn, on a GPU for good and on a CPU up to the
    backward pass; FSDP gathers in bfloat16 instead."""
    if settings.precision == "float32" or shards > 1:
        return 0
    return BYTES[settings.precision] * (model.non_embedding - model.norm)


def by_classes(
    held: Memory, student: Model, teacher: Model, settings: Training, on_gpu: bool = False
) -> Memory:
    """The same training with a teacher of another tokenizer: for the tokens of a chunk, seven times the
    logits of both vocabularies (entries gathered into classes, their shares and gradients; measured on
    30,000 and 60,000 entries), and the gradients of the head in float32."""
    tokens = settings.micro_batch_tokens or settings.batch_tokens
    most = class_chunk_tokens(max(student.vocab, teacher.vocab), on_gpu)
    chunk = min(settings.loss_chunk_tokens or most, tokens)
    logits = 7 * FLOAT * chunk * (student.vocab + teacher.vocab)
    return replace(held, loss=logits + FLOAT * student.hidden * (tokens + student.vocab))


def _held(model: Model, precision: str, shards: int = 1) -> int:
    """Bytes of a frozen model's weights on one of the processes over which it is sharded.

    While it runs, a process also gathers the embeddings, the current layer and the next one.
    """
    tables = FLOAT * (model.params - model.non_embedding)  # float32 in every precision
    layers = BYTES[precision] * model.non_embedding
    whole = tables + 2 * layers // model.layers if shards > 1 else 0
    return math.ceil((tables + layers) / shards) + whole


def evaluation(
    model: Model,
    batch_tokens: int,
    precision: str = "float32",
    scores: int = 0,
    on_gpu: bool = False,
) -> Memory:
    """Peak of a pass over held-out text; precision: see `hold_frozen`; scores: `saved_channels`."""
    chunk = min((gpu_chunk_tokens if on_gpu else chunk_tokens)(model.vocab), batch_tokens)
    return Memory(
        weights=_held(model, precision),
        activations=FLOAT * batch_tokens * transient_channels(model, scores),
        loss=2 * FLOAT * chunk * model.vocab,
    )


def held_whole(model: Model, precision: str) -> int:
    """Bytes of a model that will not learn, as `load_frozen` holds it in memory."""
    return _held(model, precision)


def layers_on_disk(held: Memory, model: Model, precision: str) -> Memory:
    """The same pass over text with a model whose layers are read from disk one at a time: in memory
    are its embeddings and head, the layer that computes and the one that is being read."""
    tables = FLOAT * (model.params - model.non_embedding)
    layer = BYTES[precision] * math.ceil(model.non_embedding / model.layers)
    return replace(held, weights=tables + 2 * layer)


def tasks(model: Model, batch_size: int) -> Memory:
    """Peak of lm-evaluation-harness: all logits of a batch, and their logarithms."""
    tokens = batch_size * TASK_CONTEXT
    return Memory(
        weights=FLOAT * model.params,
        activations=FLOAT * tokens * transient_channels(model),
        loss=2 * FLOAT * tokens * model.vocab,
    )


def scoring(
    model: Model,
    sequence_length: int,
    scores: int = 0,
    *,
    precision: str = "float32",
    on_disk: bool = False,
) -> Memory:
    """Peak of scoring importance by mask gradients: inputs of all layers, and one recomputed layer with
    masked copies and their gradients. The layer counts twice, because the allocator keeps as much.

    on_disk: whether the layers and their inputs are on disk.
    """
    tokens = max(SCORE_TOKENS, sequence_length)
    layer = replace(model, layers=1)
    masked = model.attention + model.neurons + 2 * model.hidden
    inputs = (1 if on_disk else model.layers) * model.hidden
    kept = inputs + 4 * (saved_channels(layer, scores=scores) + masked)
    return Memory(
        weights=_held(model, precision),
        activations=FLOAT * tokens * kept,
        loss=FLOAT * (chunk_tokens(model.vocab) * model.vocab + model.hidden * tokens),
    )


def cutting(teacher: Model, student: Model) -> Memory:
    """Peak of cutting one model out of another: the tensors already cut, and the embedding table, as
    read from the file and after the cut of each dimension."""
    return Memory(
        weights=FLOAT * student.params, teacher=3 * FLOAT * teacher.vocab * teacher.hidden
    )


def refitting(teacher: Model, student: Model, sequence_length: int, scores: int = 0) -> Memory:
    """Peak of refitting a student: its weights; the teacher's embeddings, head and one layer, as read
    from the file and in use; a forward pass of each model; sums and solutions in float64."""
    tokens = max(SCORE_TOKENS, sequence_length)
    of_layer = teacher.non_embedding // teacher.layers
    inputs = max(student.neurons, student.attention, student.hidden)
    sums = 7 * inputs**2 + 5 * inputs * teacher.hidden
    return Memory(
        weights=FLOAT * student.params,
        teacher=FLOAT * (teacher.embedding + 2 * of_layer),
        activations=FLOAT * tokens * 2 * transient_channels(teacher, scores),
        loss=2 * FLOAT * sums,
    )
