"""
Shapes of models that need not exist yet: their parameters, FLOPs, and the students cut from them.

The counts are those of the Hugging Face classes: a test builds every family and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from capgap.config import Depth, ModelShape, TeacherShape
from capgap.config.shapes import forward_flops_per_token
from capgap.errors import CapgapError
from capgap.pruning.solver import Sizes, Solution, Target, Widths, meet, meet_like

FAMILY_OF_CLASS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "gpt_neox",
    "OPTForCausalLM": "opt",
}
LLAMA_LIKE = ("llama", "qwen2", "qwen3", "gemma")
LEARNED_POSITIONS = {"gpt2": 0, "opt": 2}  # entries beside those of the context


@dataclass(frozen=True)
class Model:
    """What the cost of one model follows from; widths in channels, all layers alike."""

    family: str
    layers: int
    hidden: int
    attention: int  # query heads x head dimension
    key_value: int  # key-value heads x head dimension
    head_dim: int
    neurons: int
    vocab: int
    norm: int  # parameters of the norms
    non_embedding: int  # parameters without embeddings and output head
    embedding: int  # parameters of the embeddings and, where separate, of the output head

    @property
    def params(self) -> int:
        """All parameters."""
        return self.non_embedding + self.embedding

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.attention // self.head_dim

    def forward_flops(self, context: int) -> int:
        """FLOPs of one token's forward pass in sequences of `context` tokens, head included."""
        return forward_flops_per_token(
            self.non_embedding - self.norm + self.vocab * self.hidden,
            layers=self.layers,
            attention_width=self.attention,
            context=context,
        )


@dataclass(frozen=True)
class Architecture:
    """A teacher's shape and how parameters follow from the widths of what is cut from it."""

    family: str
    vocab: int
    norms_per_width: int  # tensors of a norm: weight, or weight and bias
    sizes: Sizes

    def whole(self) -> Model:
        """The model itself."""
        return self._model(self.sizes.full, self.sizes.layers)

    @cache  # noqa: B019 - a few architectures a process
    def pruned(self, params: int, depth: Depth, like: Sizes | None = None) -> Model:
        """What pruning to `params` parameters without embeddings leaves; CapgapError if none.

        like: sizes of the model that lends its shape, where students of several teachers share it.
        """
        target = Target("params", params)
        if like is None:
            kept: Solution = meet(self.sizes, target, depth)
        else:
            kept = meet_like(self.sizes, like, target, depth)
        return self._model(kept.widths, kept.layers)

    def _model(self, widths: Widths, layers: int) -> Model:
        sizes = self.sizes
        heads = widths.groups * sizes.heads_per_group
        inside_heads = 2 * sizes.head_dim * layers if self.family == "qwen3" else 0
        return Model(
            family=self.family,
            layers=layers,
            hidden=widths.hidden,
            attention=heads * sizes.head_dim,
            key_value=widths.groups * sizes.head_dim,
            head_dim=sizes.head_dim,
            neurons=widths.neurons,
            vocab=self.vocab,
            norm=(2 * layers + 1) * widths.hidden * self.norms_per_width + inside_heads,
            non_embedding=sizes.params(widths, layers),
            embedding=sizes.embedding_per_channel * widths.hidden,
        )


def architecture(shape: ModelShape) -> Architecture:
    """The architecture of a declared shape."""
    heads, groups = shape.heads, shape.kv_heads or shape.heads
    per_group, width = heads // groups, shape.head_dim or shape.hidden // heads
    if shape.family in LLAMA_LIKE:
        norms, outer = 1, ((1, 0, 0, 1),)
        inner = [(2 * width * (per_group + 1), 1, 0, 1), (3, 0, 1, 1), (2, 0, 0, 1)]
        if shape.family == "qwen2":
            inner.append((width * (per_group + 2), 1, 0, 0))
        if shape.family == "qwen3":
            inner.append((2 * width, 0, 0, 0))
    else:
        norms, outer = 2, ((2, 0, 0, 1),)
        inner = [
            (4 * width, 1, 0, 1),  # query, key, value and output
            (3 * width, 1, 0, 0),
            (2, 0, 1, 1),
            (1, 0, 1, 0),
            (6, 0, 0, 1),  # two norms with biases, biases of the two outputs
        ]
    positions = 0
    if shape.family in LEARNED_POSITIONS:
        positions = shape.positions + LEARNED_POSITIONS[shape.family]
    sizes = Sizes(
        full=Widths(groups, shape.intermediate, shape.hidden),
        layers=shape.layers,
        heads_per_group=per_group,
        head_dim=width,
        outer=outer,
        inner=tuple(inner),
        embedding_per_channel=shape.vocab * (1 if shape.tied else 2) + positions,
        hidden_is_heads=shape.family not in LLAMA_LIKE,
    )
    return Architecture(shape.family, shape.vocab, norms, sizes)


def pretrained_architecture(shape: TeacherShape, vocab: int) -> Architecture:
    """The architecture of a teacher that is trained here."""
    own = {key: getattr(shape, key) for key in ("layers", "hidden", "heads", "kv_heads")}
    return architecture(
        ModelShape(family="llama", intermediate=shape.intermediate, vocab=vocab, tied=True, **own)
    )


def shape_of_config(config: dict, where: str) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes; `where` names it in messages."""
    name = (config.get("architectures") or ["?"])[0]
    if name not in FAMILY_OF_CLASS:
        raise CapgapError(
            f"{where}: {name} is an architecture whose cost is not known; known are "
            + ", ".join(FAMILY_OF_CLASS)
        )
    family = FAMILY_OF_CLASS[name]
    keys = {
        "layers": ("num_hidden_layers", "n_layer"),
        "hidden": ("hidden_size", "n_embd"),
        "heads": ("num_attention_heads", "n_head"),
        "kv_heads": ("num_key_value_heads",),
        "head_dim": ("head_dim",),
        "intermediate": ("intermediate_size", "n_inner", "ffn_dim"),
        "vocab": ("vocab_size",),
        "positions": ("max_position_embeddings", "n_positions"),
        "stored": ("dtype", "torch_dtype"),
    }
    if family == "gpt2":  # which ignores intermediate_size
        keys["intermediate"] = ("n_inner",)
    values = {
        key: next((config[name] for name in names if config.get(name) is not None), None)
        for key, names in keys.items()
    }
    if values["intermediate"] is None and family == "gpt2":
        values["intermediate"] = 4 * values["hidden"]
    untied_by_default = family in ("llama", "qwen2", "qwen3", "gpt_neox")
    values["tied"] = config.get("tie_word_embeddings", not untied_by_default)
    given = {key: value for key, value in values.items() if value is not None}
    return ModelShape(family=family, **given)
