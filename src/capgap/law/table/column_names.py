"""
Synonyms of the columns of a table of runs, and the canonical names they stand for.

Headers are compared without case, spaces, hyphens and units in brackets, so that `Val loss (nats)`
is `val_loss`. The canonical names are the fields of `run_records.RunRow`, which documents them.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from capgap.errors import CapgapError
from capgap.law.table.delimited_text import Problems
from capgap.law.table.metric import METRICS, NAMED, TEST, VALIDATION, Metric
from capgap.records.run_records import RunRow

CANONICAL = tuple(name for name in RunRow.model_fields if name != "outcomes")
TEST_LOSS = "test_loss_nats_per_token"
RESERVED = (VALIDATION, TEST, *METRICS)  # no names of further outcomes
LOSS, TEACHER_LOSS = "val_loss_nats_per_token", "teacher_val_loss_nats_per_token"
MEASURED = {  # headers of the outcome of a run, by metric
    "loss": (
        f"{LOSS} val_loss loss valid_loss validation_loss eval_loss final_loss "
        "val_loss_nats loss_nats nll cross_entropy ce"
    ),
    "bits_per_byte": "bits_per_byte bpb val_bits_per_byte val_bpb validation_bits_per_byte",
    "higher": "higher higher_is_better",
    "lower": "lower lower_is_better",
    "perplexity": "perplexity ppl val_perplexity val_ppl validation_perplexity eval_ppl",
    "error": "error error_rate err val_error test_error",
    "accuracy": "accuracy acc val_accuracy val_acc test_accuracy test_acc",
}
ANY_METRIC = ("mean", "value", "score", "result")  # of whichever metric was chosen
SPREAD = {  # columns of a table of means
    "sd": "sd std stdev std_dev standard_deviation loss_sd loss_std sd_loss val_loss_sd val_loss_std",
    "se": "se sem stderr standard_error std_err loss_se",
    "n": "n n_seeds n_runs runs seeds replicates repeats count",
}
SYNONYMS = {
    "student": "student_name student_model student_id",
    "teacher": "teacher_name teacher_model teacher_id",
    "init": "initialisation initialization student_init start initial",
    "seed": "run_seed data_seed random_seed order_seed data_order rng_seed",
    "teacher_seed": "teacher_replica teacher_draw seed_of_teacher",
    "init_seed": "init_replica init_draw prune_seed pruning_seed calibration_seed seed_of_init",
    "student_params_non_embedding": (
        "student_params student_size student_parameters student_n_params params_student size_student "
        "n_student n_s s"
    ),
    "teacher_params_non_embedding": (
        "teacher_params teacher_size teacher_parameters teacher_n_params params_teacher size_teacher "
        "n_teacher n_t t"
    ),
    "student_params_total": "student_params_with_embeddings student_total_params",
    "teacher_params_total": "teacher_params_with_embeddings teacher_total_params",
    "student_forward_flops_per_token": "student_forward_flops student_flops_per_token",
    "teacher_forward_flops_per_token": "teacher_forward_flops teacher_flops_per_token",
    "tokens": (
        "token training_tokens train_tokens distillation_tokens distill_tokens n_tokens num_tokens "
        "token_budget budget d"
    ),
    "teacher_family": "family",
    "teacher_weight": "distillation_weight soft_weight weight_of_teacher",
    "arm": "ablation ablation_arm control",
    "start_val_loss_nats_per_token": "start_loss init_loss init_val_loss start_val_loss",
    "test_loss_nats_per_token": "test_loss",
    "train_flops": "training_flops flops",
    "trunk_tokens": "stable_tokens",
}


def plain(header: str) -> str:
    """A header without case, units in brackets, spaces and hyphens: 'Val loss (nats)' -> 'val_loss'."""
    text = re.sub(r"\([^)]*\)|\[[^\]]*\]", " ", header)
    return re.sub(r"[^0-9a-z]+", "_", text.lower()).strip("_")


def _table() -> dict[str, str]:
    """Plain header -> canonical name, 'measured:<metric>', 'teacher:<metric>' or 'spread:<what>'."""
    known = {name: name for name in CANONICAL if name not in SPREAD}
    for name, others in SYNONYMS.items():
        known |= dict.fromkeys(others.split(), name)
    for metric, names in MEASURED.items():
        known |= dict.fromkeys(names.split(), f"measured:{metric}")
        for mean in (f"mean_{metric}", f"{metric}_mean"):
            known[mean] = f"measured:{metric}"
        known |= {f"teacher_{name}": f"teacher:{metric}" for name in names.split()}
        known |= {f"{metric}_{what}": f"spread:{what}" for what in ("sd", "std", "se")}
    known |= {f"{metric}_std": "spread:sd" for metric in METRICS}
    for what, names in SPREAD.items():
        known |= dict.fromkeys(names.split(), f"spread:{what}")
    known |= dict.fromkeys(ANY_METRIC, "measured:any")
    known |= {f"teacher_{name}": "teacher:any" for name in ANY_METRIC}
    return known


KNOWN = _table()


def canonical(header: str) -> str | None:
    """The canonical name of a header, None for one that the law does not use."""
    return KNOWN.get(plain(header))


@dataclass(frozen=True)
class Columns:
    """The columns of a file by their number."""

    known: dict[str, int]  # by canonical name
    outcome: int
    metric: Metric  # of the outcome
    name: str | None  # of the outcome; None if it is the plain one
    others: dict[str, tuple[Metric, int]]  # further outcomes by name: metric and column
    teacher_outcome: tuple[Metric, int] | None  # metric and column of the teachers' own values
    spread: dict[str, int]  # sd, se, n of a table of means
    ignored: list[str]  # headers that the law does not use


def assign(header: list[str], asked: str | None, problems: Problems) -> Columns:
    """Assign a meaning to every column. asked: a metric or a named outcome, None to use the header.

    Adds what is missing, ambiguous or misspelt to `problems` and raises them all.
    """
    roles: dict[str, list[int]] = {}
    ignored, named, of_teachers = [], {}, {}
    for i, name in enumerate(header):
        own = NAMED.fullmatch(name.strip().removeprefix("teacher_"))
        if own:
            kind, label = METRICS[own[1]], own[2]
            there = of_teachers if name.strip().startswith("teacher_") else named
            if label in there or label in RESERVED:
                problems.add(f"'{name}': another outcome is called {label}; give it another name")
            there[label] = kind, i
            continue
        found = KNOWN.get(plain(name))
        if found is None:
            meant = difflib.get_close_matches(plain(name), CANONICAL, n=1, cutoff=0.8)
            if meant:
                problems.add(f"unknown column '{name}' (did you mean '{meant[0]}'?)")
            ignored.append(name)
        else:
            roles.setdefault(found, []).append(i)
    for found, several in roles.items():
        if len(several) > 1:
            names = " and ".join(f"'{header[i]}'" for i in several)
            problems.add(f"the columns {names} mean the same, {found.split(':')[-1]}; keep one")
    first = {found: several[0] for found, several in roles.items()}
    known = {name: first[name] for name in CANONICAL if name in first}
    for side in ("student", "teacher"):
        if side not in known and f"{side}_params_non_embedding" not in known:
            problems.add(f"no column '{side}_params_non_embedding' with the sizes of the {side}s")
    if "tokens" not in known:
        problems.add("no column 'tokens' with the distillation tokens of every run")
    if TEST_LOSS in known:
        named[TEST] = METRICS["loss"], known[TEST_LOSS]
    name = asked if asked in named and asked not in METRICS else None
    plain_ones = {
        name: first[f"measured:{name}"] for name in METRICS if f"measured:{name}" in first
    }
    if name is not None:
        metric, outcome = named[name]
        for kind in list(plain_ones)[:1]:  # the loss if there are several
            named[VALIDATION] = METRICS[kind], plain_ones[kind]
    else:
        unnamed = first.get("measured:any")
        metric, outcome = _outcome(header, plain_ones, unnamed, asked, [*named], problems)
    if any(text.startswith("no column") for _, text in problems.found):
        problems.header = header
    problems.check()
    measured = {name: i for name, i in first.items() if name.startswith("measured:")}
    used = {outcome, *(column for _, column in named.values())}
    ignored += [header[i] for i in measured.values() if i not in used]
    return Columns(
        known=known,
        outcome=outcome,
        metric=metric,
        name=name,
        others={label: found for label, found in named.items() if label != name},
        teacher_outcome=of_teachers.get(name) or _teacher_outcome(first, metric),
        spread={what: first[f"spread:{what}"] for what in SPREAD if f"spread:{what}" in first},
        ignored=ignored,
    )


def _outcome(
    header: list[str],
    found: dict[str, int],
    unnamed: int | None,
    asked: str | None,
    named: list[str],
    problems: Problems,
) -> tuple[Metric, int | None]:
    """Metric and column of the plain outcome; a column headed loss holds whatever metric is asked for.

    found: columns of plain outcomes by metric; unnamed: one that could be any. named: the outcomes that
    could be asked for by name.
    """
    if asked is not None:
        if asked not in METRICS:
            known = ", ".join([*METRICS, *named])
            raise CapgapError(f"metric is '{asked}', not one of {known}")
        metric = METRICS[asked]
        column = found.get(asked, unnamed if unnamed is not None else found.get("loss"))
        if column is None and found:
            other = next(iter(found))
            problems.add(
                f"--metric {asked}, but the column '{header[found[other]]}' holds values of "
                f"{other}; leave --metric out, or rename the column"
            )
        elif column is None:
            problems.add(f"no column '{asked}'")
        return metric, column
    if "loss" in found or len(found) == 1:
        name = "loss" if "loss" in found else next(iter(found))
        return METRICS[name], found[name]
    if found:
        names = ", ".join(f"'{header[i]}'" for i in found.values())
        problems.add(f"{names} measure the runs; choose one with --metric {' or '.join(found)}")
    elif unnamed is not None:
        problems.add(f"what is in '{header[unnamed]}'? Choose --metric {' or '.join(METRICS)}")
    else:
        problems.add(
            f"no column '{LOSS}' (or loss, perplexity, error, accuracy or bits_per_byte)"
            + (f"; to fit {' or '.join(named)}, name it with --metric" if named else "")
        )
    return METRICS["loss"], -1


def _teacher_outcome(first: dict[str, int], metric: Metric) -> tuple[Metric, int] | None:
    """The teachers' own column, preferably of the metric of the runs or of its unit."""
    if "teacher:any" in first:
        return metric, first["teacher:any"]
    found = {m.name: m for m in METRICS.values() if f"teacher:{m.name}" in first}
    if not found:
        return None
    best = max(found.values(), key=lambda m: (m == metric, m.unit == metric.unit))
    return best, first[f"teacher:{best.name}"]
