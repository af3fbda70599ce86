"""Main memory of the jobs of a study."""

from __future__ import annotations

from capgap.cost.device_memory import Memory
from capgap.cost.study_sizes import StudySizes

MEGA = 10**6
BASE_MB = {"torch": 420, "text": 250, "law": 350}  # of a job with its imports, without any data
CUDA_MB = 2500  # more for a process on a device: libraries and context; assumed
TEXT_RULES = ("prepare_corpus", "make_tokenizer", "pack_tokens")
OF_TEXTS = ("prepare_text", "pack_text")  # as much as of a corpus at most, because they stream
TEXT_COPIES = {"prepare_corpus": 3, "make_tokenizer": 2, "pack_tokens": 3}  # of the text in memory
TEXT_MOST_MB = {"prepare_corpus": 500, "make_tokenizer": 1500, "pack_tokens": 700}  # as they stream
SHARED = (  # by processes
    *("evaluate_teacher", "evaluate_student", "evaluate_teacher_text", "evaluate_student_text"),
    *("score_importance", "score_round", "cache_teacher"),
)
LAW_RULES = (
    *("collect_runs", "fit_law", "choose_teacher"),
    *("compare_final", "write_metrics", "write_report"),
)


def base_mb(rule: str) -> int:
    """Memory of a rule's job with its imports, without any data, MB of 10^6 bytes."""
    return BASE_MB[
        "text" if rule in TEXT_RULES + OF_TEXTS else "law" if rule in LAW_RULES else "torch"
    ]


def host_mb(sizes: StudySizes, rule: str, held: Memory | None = None) -> int:
    """Peak main memory of a rule's job, MB of 10^6 bytes. held: by its process, None without a model.

    On a device, main memory holds only the weights as they are in files, once for all processes, and
    in training the checkpoint that is being written, of which processes that shard a model have parts.
    """
    base = base_mb(rule)
    if rule in TEXT_RULES:
        held_mb = round(TEXT_COPIES[rule] * sizes.corpus_bytes / MEGA)
        return base + min(held_mb, TEXT_MOST_MB[rule])
    if rule in OF_TEXTS:
        return base + max(TEXT_MOST_MB["prepare_corpus"], TEXT_MOST_MB["pack_tokens"])
    if sizes.on_gpu and rule not in LAW_RULES:
        base += CUDA_MB
    if held is None:
        return base
    if not held.optimizer and rule not in SHARED:
        return base + round(held.total / MEGA)
    processes = sizes.study.plan.processes_per_node
    if not sizes.on_gpu:
        # processes that shard a model save copies of their parts while training continues
        copied = (
            held.weights + held.optimizer if held.optimizer and sizes.study.plan.shards > 1 else 0
        )
        return processes * (base + round((held.total + copied) / MEGA))
    if rule in SHARED:
        return processes * base + round(held.total / MEGA)
    size = held.weights + held.teacher + held.optimizer
    if rule == "pretrain_teacher":  # each process makes the model, none reads it
        size += (processes - 1) * held.weights
    return processes * base + round(size / MEGA)
