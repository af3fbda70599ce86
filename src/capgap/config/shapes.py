"""
Shapes of transformer models, their parameters by group, and FLOPs.

Pure arithmetic, no torch: the plan of a study needs these numbers before any model exists.
"""

from __future__ import annotations

from dataclasses import dataclass

WHOLE_ATTENTION = 512  # tokens; up to this length a CPU computes all attention scores at once


@dataclass(frozen=True)
class LlamaShape:
    """Shape of a Llama model; all layers alike."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool

    def params(self) -> dict[str, int]:
        """Parameters by group: embedding (with the output head), attention, mlp, norm.

        `non_embedding` is attention + mlp + norm, `total` adds the embedding.
        """
        groups = {
            "embedding": self.vocab * self.hidden * (1 if self.tied else 2),
            "attention": self.layers
            * 2
            * self.hidden
            * self.head_dim
            * (self.heads + self.kv_heads),
            "mlp": self.layers * 3 * self.hidden * self.intermediate,
            "norm": (2 * self.layers + 1) * self.hidden,
        }
        groups["non_embedding"] = groups["attention"] + groups["mlp"] + groups["norm"]
        groups["total"] = groups["non_embedding"] + groups["embedding"]
        return groups


def forward_flops_per_token(
    params_matmul: int, layers: int, attention_width: int, context: int
) -> int:
    """FLOPs of one token's forward pass: 2 per weight used in a matmul, plus attention.

    params_matmul: weights of the layers and of the output head (the input embedding is a look-up).
    attention_width: heads x head dimension. context: tokens of the sequence; with a causal mask a
    token sees half of them on average, and scores and weighted sum cost 2 FLOPs each a channel.
    Source: Kaplan et al. 2020 (arXiv 2001.08361), table 1, with the causal half.
    """
    return 2 * params_matmul + 2 * layers * attention_width * context


def training_flops(tokens: int, student_forward: int, teacher_forward: int = 0) -> int:
    """FLOPs of a training run: forward and backward of the student, forward of the teacher.

    The backward pass costs two forward passes: 6 N_S D + 2 N_T D (Kaplan et al. 2020; the
    accounting behind the Pareto plot of arXiv 2311.07052).
    """
    return tokens * (3 * student_forward + teacher_forward)


def simple_training_flops(student_params: float, teacher_params: float, tokens: float) -> float:
    """6 N_S D + 2 N_T D: the accounting of the literature, without attention.

    Reproduces the FLOPs that arXiv 2311.07052 publishes: 4.0e21 for a student of 3B from a teacher
    of 7B at 126B tokens. `teacher_params` is 0 without a teacher, or with cached targets.
    """
    return (6 * student_params + 2 * teacher_params) * tokens


def chunk_tokens(vocab: int) -> int:
    """Tokens whose logits a loss holds at once.

    Few enough that the logits fit a core's cache if the vocabulary is small, and are small compared
    with the model if it is large; enough for efficient matmuls.
    """
    return max(176, min(256, 2**22 // vocab // 32 * 32))


GPU_LOGITS = 2**27  # entries of a chunk of logits on a GPU
GPU_CHUNK = 256  # whose multiples chunks on a GPU are


def gpu_chunk_tokens(vocab: int) -> int:
    """Tokens whose logits a loss holds at once on a GPU, whose memory has no fast part to fit into.

    The head is read, and its gradient read and written, once a chunk, so a chunk is large: the two
    gradients of a head take longer than the logits' own passes below about a thousand tokens.
    """
    return max(2 * GPU_CHUNK, min(8192, GPU_LOGITS // vocab // GPU_CHUNK * GPU_CHUNK))


def class_chunk_tokens(vocab: int, on_gpu: bool) -> int:
    """The same for a teacher with another tokenizer, whose loss holds several times the logits of both.

    vocab: of the larger vocabulary.
    """
    return gpu_chunk_tokens(4 * vocab) if on_gpu else chunk_tokens(vocab)
