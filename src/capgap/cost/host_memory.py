"""Main memory of the jobs of a study."""

from __future__ import annotations

from dataclasses import replace

from capgap.config import run_grid
from capgap.config.devices import CPU
from capgap.cost import device_memory
from capgap.cost.device_memory import FLOAT, Memory
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


def host_mb(
    sizes: StudySizes, rule: str, *, student="", init="", teacher="", number=0, **_: str | int
) -> int:
    """Peak main memory of a job, MB of 10^6 bytes, given the wildcards of its rule.

    On a device, main memory holds only the weights as they are in files, once for all processes, and
    in training the checkpoint that is being written, of which processes that shard a model have parts.
    """
    base, on_device = base_mb(rule), sizes.study.plan.device != CPU
    if on_device and rule not in TEXT_RULES + OF_TEXTS + LAW_RULES:
        base += CUDA_MB
    if rule in TEXT_RULES:
        held_mb = round(TEXT_COPIES[rule] * sizes.corpus_bytes / MEGA)
        return base + min(held_mb, TEXT_MOST_MB[rule])
    if rule in OF_TEXTS:
        return base + max(TEXT_MOST_MB["prepare_corpus"], TEXT_MOST_MB["pack_tokens"])
    match rule:
        case "pretrain_teacher":
            settings = sizes.study.pretrain_stage(teacher)
            model = sizes.architecture(teacher).whole()
            held = sizes.training_memory(model, settings, alone=on_device)
        case "fetch_teacher":
            held = Memory(weights=2 * FLOAT * sizes.architecture(teacher).whole().params)
        case "evaluate_teacher" | "evaluate_teacher_text":
            model = sizes.architecture(teacher).whole()
            held = sizes.evaluation_memory(model, sizes.study.evaluate)
        case "cache_teacher":
            model = sizes.architecture(teacher).whole()
            held = sizes.evaluation_memory(model, sizes.study.distill.targets_stage())
        case "score_importance":
            model = sizes.architecture(teacher).whole()
            held = sizes.scoring_memory(model)
        case "prune_student" | "cut_round":
            models = sizes.cuts(student, init or run_grid.pruned_from(teacher))
            number = int(number) or sizes.study.prune.rounds
            whole, cut = models[number - 1], models[number]
            held = device_memory.cutting(whole, cut)
            if sizes.study.prune.refit != "none":
                refit = sizes.refit_memory(cut, whole)
                held = max(held, refit, key=lambda memory: memory.total)
        case "random_init_student":
            like = sizes.shape_teacher[student]
            cut = sizes.student(student, run_grid.RANDOM)
            held = device_memory.cutting(sizes.architecture(like).whole(), cut)
        case "given_student":
            model = sizes.student(student, init)
            held = Memory(weights=2 * FLOAT * model.params)
        case "score_round":
            held = sizes.scoring_memory(sizes.cuts(student, init)[int(number)])
        case "distill_student" | "distill_round":
            cuts = sizes.cuts(student, init) if rule == "distill_round" else ()
            model = cuts[int(number)] if cuts else sizes.student(student, init)
            held = sizes.distill_memory(model, teacher, alone=on_device)
            if on_device and held.teacher:  # in its file, all weights are float32
                model = sizes.architecture(teacher).whole()
                held = replace(held, teacher=FLOAT * model.params)
        case "harness_teacher" | "harness_final":
            held = sizes.harness_memory(teacher)
        case "sample_final":
            held = sizes.sampling_memory(teacher)
        case "harness_student":
            model = sizes.student(student, init)
            held = device_memory.tasks(model, sizes.study.harness.batch_size)
        case "evaluate_student" | "evaluate_student_text":
            model = sizes.student(student, init)
            held = sizes.evaluation_memory(model, sizes.study.evaluate)
        case _:
            return base
    if not held.optimizer and rule not in SHARED:
        return base + round(held.total / MEGA)
    processes = sizes.study.plan.processes_per_node
    if not on_device:
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
