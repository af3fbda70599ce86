"""
Shapes of models that need not exist yet: their parameters, FLOPs, and the students cut from them.

The counts are those of the Hugging Face classes: a test builds every family and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from capgap.config import Depth, ModelShape, TeacherShape
from capgap.config.shapes import forward_flops_per_token
from capgap.errors import CapgapError
from capgap.pruning.solver import Sizes, Solution, Target, Widths, meet, meet_halfway, meet_like

FAMILY_OF_CLASS = {
    "LlamaForCausalLM": "llama",
    "Phi3ForCausalLM": "llama",
    "GraniteForCausalLM": "llama",
    "SmolLM3ForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Olmo2ForCausalLM": "olmo2",
    "StableLmForCausalLM": "stablelm",
    "NemotronForCausalLM": "nemotron",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "FalconForCausalLM": "falcon",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "gpt_neox",
    "OPTForCausalLM": "opt",
}


@dataclass(frozen=True)
class Traits:
    """Features of a family that decide its number of parameters, besides the widths."""

    gated: bool = True  # three matrices in the MLP, not two
    norms: int = 2  # in a layer
    norm_tensors: int = 1  # of a norm: weight, or weight and bias
    head_norms: str = "none"  # of queries and keys: one each, or all heads together
    qkv_bias: bool = False
    other_biases: bool = False  # of the outputs and of the MLP
    hidden_is_heads: bool = False


BIASED = Traits(gated=False, norm_tensors=2, qkv_bias=True, other_biases=True, hidden_is_heads=True)
STABLELM = Traits(norm_tensors=2, hidden_is_heads=True)
FALCON = Traits(gated=False, norm_tensors=2, hidden_is_heads=True)
TRAITS = {
    "llama": Traits(),
    "qwen2": Traits(qkv_bias=True),
    "qwen3": Traits(head_norms="each"),
    "gemma": Traits(),
    "gemma2": Traits(norms=4),
    "gemma3": Traits(norms=4, head_norms="each"),
    "olmo2": Traits(head_norms="all"),
    "stablelm": STABLELM,
    "stablelm_biased": replace(STABLELM, qkv_bias=True),
    "stablelm_parallel": replace(STABLELM, norms=1),
    "nemotron": Traits(gated=False, norm_tensors=2),
    "mixtral": Traits(),
    "qwen3_moe": Traits(head_norms="each"),
    "falcon": FALCON,
    "falcon_7b": replace(FALCON, norms=1),
    "falcon_rw": BIASED,
    "gpt2": BIASED,
    "gpt_neox": BIASED,
    "opt": BIASED,
}
TIED_BY_DEFAULT = (
    "gemma", "gemma2", "gemma3", "falcon", "falcon_7b", "falcon_rw", "gpt2", "opt",
)  # fmt: skip
LEARNED_POSITIONS = {"gpt2": 0, "opt": 2}  # entries of the table besides those of the context


@dataclass(frozen=True)
class Model:
    """The sizes that decide the cost of one model; widths in channels, all layers alike."""

    family: str
    layers: int
    hidden: int
    attention: int  # query heads x head dimension
    key_value: int  # key-value heads x head dimension
    head_dim: int
    neurons: int  # that a token uses
    vocab: int
    norm: int  # parameters of the norms
    non_embedding: int  # parameters without embeddings and output head
    embedding: int  # parameters of the embeddings, and of the output head unless it is tied
    idle: int = 0  # parameters of the experts that a token is not routed to

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
            self.non_embedding - self.norm - self.idle + self.vocab * self.hidden,
            layers=self.layers,
            attention_width=self.attention,
            context=context,
        )


@dataclass(frozen=True)
class Architecture:
    """A teacher's shape, and the parameter count of students cut from it as a polynomial of widths."""

    family: str
    vocab: int
    sizes: Sizes
    expert_neurons: int = 0  # of one expert; 0 without experts

    def whole(self) -> Model:
        """The model itself."""
        return self._model(self.sizes.full, self.sizes.layers)

    def pruned(self, params: int, depth: Depth, like: Sizes | None = None) -> Model:
        """The student that pruning to `params` parameters without embeddings gives, see `cuts`."""
        return self.cuts(params, depth, like)[-1]

    @cache  # noqa: B019 - a few architectures a process
    def cuts(
        self, params: int, depth: Depth, like: Sizes | None = None, rounds: int = 1
    ) -> tuple[Model, ...]:
        """The model, and what is left of it after each cut to `params` parameters without embeddings.

        like: sizes of the model that lends its shape, if students of several teachers share one.
        Raises CapgapError if no student is near enough.
        """
        target, sizes, models = Target("params", params), self.sizes, [self.whole()]
        if like is None:
            end: Solution = meet(sizes, target, depth)
        else:
            end = meet_like(sizes, like, target, depth)
        for left in range(rounds, 0, -1):
            kept = meet_halfway(sizes, end, left)
            sizes = replace(sizes, full=kept.widths, layers=kept.layers)
            models.append(self._model(kept.widths, kept.layers))
        return tuple(models)

    def _model(self, widths: Widths, layers: int) -> Model:
        sizes = self.sizes
        heads = widths.groups * sizes.heads_per_group
        traits, neurons, idle = TRAITS[self.family], widths.neurons, 0
        inside_heads = {
            "none": 0,
            "each": 2 * sizes.head_dim,
            "all": (heads + widths.groups) * sizes.head_dim,
        }[traits.head_norms]
        if self.expert_neurons:
            routed = sizes.least_neurons
            idle = layers * (widths.neurons - routed) * 3 * self.expert_neurons * widths.hidden
            neurons = routed * self.expert_neurons
        return Model(
            family=self.family,
            layers=layers,
            hidden=widths.hidden,
            attention=heads * sizes.head_dim,
            key_value=widths.groups * sizes.head_dim,
            head_dim=sizes.head_dim,
            neurons=neurons,
            vocab=self.vocab,
            norm=(traits.norms * layers + 1) * widths.hidden * traits.norm_tensors
            + layers * inside_heads,
            non_embedding=sizes.params(widths, layers),
            embedding=sizes.embedding_per_channel * widths.hidden,
            idle=idle,
        )


def architecture(shape: ModelShape) -> Architecture:
    """The architecture of a declared shape."""
    heads, groups = shape.heads, shape.kv_heads or shape.heads
    per_group, width = heads // groups, shape.head_dim or shape.hidden // heads
    traits = TRAITS[shape.family]
    matrices = 3 if traits.gated else 2
    if shape.experts:  # and a row of the router for each
        matrices = matrices * shape.intermediate + 1
    inner = [
        (2 * width * (per_group + 1), 1, 0, 1),  # query, key, value and output
        (matrices, 0, 1, 1),
        (traits.norms * traits.norm_tensors, 0, 0, 1),
    ]
    if traits.qkv_bias:
        inner.append((width * (per_group + 2), 1, 0, 0))
    if traits.other_biases:
        inner += [(1, 0, 1, 0), (2, 0, 0, 1)]
    if traits.head_norms == "each":
        inner.append((2 * width, 0, 0, 0))
    if traits.head_norms == "all":
        inner.append((width * (per_group + 1), 1, 0, 0))
    positions = 0
    if shape.family in LEARNED_POSITIONS:
        positions = shape.positions + LEARNED_POSITIONS[shape.family]
    sizes = Sizes(
        full=Widths(groups, shape.experts or shape.intermediate, shape.hidden),
        layers=shape.layers,
        heads_per_group=per_group,
        head_dim=width,
        outer=((traits.norm_tensors, 0, 0, 1),),
        inner=tuple(inner),
        embedding_per_channel=shape.vocab * (1 if shape.tied else 2) + positions,
        hidden_is_heads=traits.hidden_is_heads,
        least_neurons=shape.experts_per_token if shape.experts else 1,
        mlp_unit="experts" if shape.experts else "neurons",
    )
    return Architecture(
        shape.family, shape.vocab, sizes, shape.intermediate if shape.experts else 0
    )


def pretrained_architecture(shape: TeacherShape, vocab: int) -> Architecture:
    """The architecture of a teacher that the study trains; vocab: entries of the vocabulary."""
    own = {key: getattr(shape, key) for key in ("layers", "hidden", "heads", "kv_heads")}
    return architecture(
        ModelShape(family="llama", intermediate=shape.intermediate, vocab=vocab, tied=True, **own)
    )


def _variant(family: str, config: dict) -> str:
    """The variant of a family with the biases and norms of a configuration."""
    if family == "stablelm" and config.get("use_qkv_bias"):
        return "stablelm_biased"
    if family == "stablelm" and config.get("use_parallel_residual"):
        return "stablelm_parallel"
    if family != "falcon" or config.get("new_decoder_architecture"):
        return family
    return "falcon_rw" if config.get("bias") else "falcon_7b"


def shape_of_config(config: dict, where: str) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes.

    where: name of the file for messages. Raises CapgapError for an architecture that is not counted.
    """
    name = (config.get("architectures") or ["?"])[0]
    if name not in FAMILY_OF_CLASS:
        raise CapgapError(
            f"{where}: {name} is an architecture whose cost is not known; known are "
            + ", ".join(FAMILY_OF_CLASS)
        )
    if isinstance(config.get("text_config"), dict):  # a multimodal model
        config = {"tie_word_embeddings": config.get("tie_word_embeddings")} | config["text_config"]
    family = _variant(FAMILY_OF_CLASS[name], config)
    keys = {
        "layers": ("num_hidden_layers", "n_layer"),
        "hidden": ("hidden_size", "n_embd"),
        "heads": ("num_attention_heads", "n_head"),
        "kv_heads": ("num_kv_heads", "num_key_value_heads"),
        "head_dim": ("head_dim",),
        "intermediate": (
            "moe_intermediate_size",
            "intermediate_size",
            "n_inner",
            "ffn_dim",
            "ffn_hidden_size",
        ),
        "experts": ("num_local_experts", "num_experts"),
        "experts_per_token": ("num_experts_per_tok",),
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
    if family in ("falcon_7b", "falcon_rw"):
        values["kv_heads"] = 1 if config.get("multi_query") else values["heads"]
    tied = config.get("tie_word_embeddings")
    values["tied"] = family in TIED_BY_DEFAULT if tied is None else tied
    given = {key: value for key, value in values.items() if value is not None}
    return ModelShape(family=family, **given)
