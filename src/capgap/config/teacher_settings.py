"""The teachers: trained here, or fetched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from capgap.config.section import Count, Section, Seed
from capgap.config.shapes import LlamaShape


class TeacherShape(Section):
    """Shape and seed of a Llama-shaped model; embeddings are tied."""

    layers: int = Field(gt=0, description="transformer layers")
    hidden: int = Field(gt=0, description="hidden channels, a multiple of heads")
    heads: int = Field(gt=0, description="query heads per layer")
    kv_heads: int | None = Field(None, gt=0, description="key-value heads, a divisor of heads")
    intermediate: int = Field(gt=0, description="MLP neurons per layer, or of one expert")
    experts: int | None = Field(None, gt=0, description="experts per layer, if there are any")
    experts_per_token: int = Field(1, gt=0, description="experts that a token is routed to")
    seed: Seed = Field(0, description="seed of the initial weights and of the data order")

    @model_validator(mode="after")
    def _divides(self):
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden must be a multiple of heads, got hidden {self.hidden} and heads {self.heads}"
            )
        if self.hidden // self.heads % 2:
            raise ValueError(
                f"hidden / heads must be even (rotary positions), got {self.hidden // self.heads}"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"heads must be a multiple of kv_heads, got heads {self.heads} "
                f"and kv_heads {self.kv_heads}"
            )
        return self

    def shape(self, vocab: int) -> LlamaShape:
        """Shape of the model for a vocabulary of `vocab` entries; embeddings are tied."""
        return LlamaShape(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.hidden // self.heads,
            intermediate=self.intermediate,
            vocab=vocab,
            tied=True,
        )


class PretrainedTeacher(TeacherShape):
    """A model trained here from a random init."""

    source: Literal["pretrain"]
    tokens: Count | None = Field(
        None, gt=0, description="training tokens, if not those of pretrain"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate, if not pretrain.learning_rate"
    )


class FetchedTeacher(Section):
    """The common settings of all teachers that are not trained in the study."""

    params_non_embedding: Count | None = Field(
        None,
        gt=0,
        description="parameters without embeddings and output head, checked on arrival; read from the "
        "model's config.json if not set",
    )
    trim_vocabulary: bool | Count = Field(
        False,
        description="entries of the vocabulary to keep at most, the ones that the training split "
        "uses most; true keeps all it uses, false the whole vocabulary",
    )


class HubTeacher(FetchedTeacher):
    """A model of the Hugging Face hub at a pinned commit; safetensors only."""

    source: Literal["hub"]
    model: str = Field(description="model id on the hub, owner/name")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="commit, 40 hexadecimal digits")


class PackageTeacher(FetchedTeacher):
    """A model file (GGUF) or folder inside an installed Python package."""

    source: Literal["package"]
    package: str = Field(description="name of the installed package, found but never imported")
    file: str = Field(description="path of the .gguf file or model folder inside the package")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="expected SHA-256 of the file"
    )


class PathTeacher(FetchedTeacher):
    """A local Hugging Face folder."""

    source: Literal["path"]
    path: str = Field(description="folder with config.json, safetensors weights and tokenizer")


FetchedSource = Annotated[HubTeacher | PackageTeacher | PathTeacher, Field(discriminator="source")]
Teacher = Annotated[
    PretrainedTeacher | HubTeacher | PackageTeacher | PathTeacher, Field(discriminator="source")
]


class ModelShape(Section):
    """Shape of a model that is not fetched yet, from which its cost is computed; all layers alike."""

    family: Literal[
        "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "stablelm",
        "stablelm_biased", "stablelm_parallel", "nemotron", "mixtral", "qwen3_moe", "falcon", "falcon_7b", "falcon_rw", "gpt2",
        "gpt_neox", "opt",
    ] = Field(
        description="architecture; Mistral, Phi-3, Granite and SmolLM3 count as llama, Pythia is "
        "gpt_neox; stablelm_biased has biases of query, key and value, stablelm_parallel "
        "one norm a layer; falcon is the one of 40B and "
        "later"
    )  # fmt: skip
    layers: int = Field(gt=0, description="transformer layers")
    hidden: int = Field(gt=0, description="hidden channels")
    heads: int = Field(gt=0, description="query heads per layer")
    kv_heads: int | None = Field(None, gt=0, description="key-value heads, if fewer")
    head_dim: int | None = Field(None, gt=0, description="head dimension, if not hidden / heads")
    intermediate: int = Field(gt=0, description="MLP neurons per layer, or of one expert")
    experts: int | None = Field(None, gt=0, description="experts per layer, if there are any")
    experts_per_token: int = Field(1, gt=0, description="experts that a token is routed to")
    vocab: int = Field(gt=0, description="entries of the vocabulary")
    positions: int = Field(0, ge=0, description="context; gpt2 and opt learn a vector for each")
    tied: bool = Field(False, description="whether the output head is the input embedding")
    stored: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="type of the weights as published, for the size of the download"
    )
