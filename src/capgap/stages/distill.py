"""
Train one student from its init, with a teacher or without.

A teacher with another tokenizer teaches by classes of entries (engine/class_loss.py).

IN   init folder, teacher folder (none for the control without a teacher), token streams; the same text
     in the teacher's tokens if its tokenizer is another one; the teacher's targets unless
     `teacher_targets` is online; with schedule wsd the trunk of the next smaller budget, if there is one
OUT  model/, curve.csv, train.json; with schedule wsd trunk/, from which larger budgets continue
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from capgap.command_parser import by_hand
from capgap.config import Distill, FilesCorpus
from capgap.config.run_grid import NONE
from capgap.config.study_file import check_section
from capgap.data.processes import available
from capgap.data.token_streams import Streams
from capgap.engine.aligned_text import aligned_text
from capgap.engine.class_loss import Comparison, Inside, Pools
from capgap.engine.cross_tokenizer import CrossTokenizer
from capgap.engine.entry_bytes import entry_bytes
from capgap.engine.entry_classes import entry_classes
from capgap.engine.models import (
    check_reads,
    load_model,
    load_tokenizer,
    read_lineage,
    tokenizer_digest,
    vocabulary_rows,
)
from capgap.engine.objectives import Distillation, data_objective
from capgap.engine.parallel import will_share
from capgap.engine.resuming import RunPaths
from capgap.engine.shared_loading import load_to_share
from capgap.engine.teacher_targets import TargetStore
from capgap.engine.training_job import TrainingJob, train_and_publish
from capgap.errors import CapgapError
from capgap.pruning.store import weights_digest
from capgap.records.artifacts import open_folder, temporary_folder
from capgap.records.run_records import Lineage, TrainRecord
from capgap.stages.base import (
    StageParser,
    add_training_arguments,
    count_argument,
    run_stage,
    seed_argument,
)


def run(
    settings: Distill,
    init: Path,
    teacher: Path | None,
    tokens_folder: Path,
    *,
    tokens: int,
    seed: int,
    run_paths: RunPaths,
    trunk: Path | None = None,
    targets: Path | None = None,
    teacher_streams: Path | None = None,
) -> TrainRecord:
    """Train and publish one student.

    tokens: budget. seed: of the data order. trunk: of the same student at a smaller budget, which
    saves time and does not change the result. targets: cached targets that replace the teacher.
    teacher_streams: the text packed with the tokenizer of a teacher that has another one.
    """
    store = None if targets is None else TargetStore(targets)
    settings = settings if store is None else _with_targets(settings, store)
    streams, init = Streams(tokens_folder), open_folder(init)
    load = load_to_share if will_share(run_paths.shard) else load_model
    student = load(init)
    start = read_lineage(init, student)
    _check_model(settings, init, student, streams)
    vocab = min(streams.meta.vocab_size, vocabulary_rows(student))
    objective, teacher_model = _alone(settings, vocab), None
    teacher_name, teacher_seed, teacher_tokens = NONE, None, 1.0
    teacher = None if teacher is None else open_folder(teacher)
    taught_apart = _check_streams(settings, streams, teacher, teacher_streams, store)
    if store is not None:
        store.check(
            settings.targets_stage(),
            weights_sha256=weights_digest(teacher) if teacher else store.record.weights_sha256,
            stream_sha256=streams.digest("train"),
        )
        teacher_name, teacher_seed = store.record.teacher, store.record.teacher_seed
        vocab = _rows_of(store, vocab)
        objective = Distillation(store, settings, vocab)
    elif teacher is not None and settings.teacher_targets == "online":
        teacher_model = load(teacher, dtype=None)  # mapped: all processes hold it once
        taught = read_lineage(teacher, teacher_model)
        teacher_name, teacher_seed = taught.name, taught.seed
        if taught_apart is None:
            _check_model(settings, teacher, teacher_model, streams)
            vocab = min(vocab, vocabulary_rows(teacher_model))
            objective = Distillation(teacher_model, settings, vocab)
        else:
            objective = _by_classes(
                settings, (init, streams), (teacher, taught_apart), vocab, teacher_model
            )
            teacher_tokens = taught_apart.meta.tokens["train"] / streams.meta.tokens["train"]
    elif teacher is not None:
        raise CapgapError(
            f"teacher_targets is {settings.teacher_targets}, so the teacher's targets are needed: name "
            "their folder with --targets (capgap cache-teacher makes it), or set teacher_targets to "
            "online"
        )
    else:
        print("no teacher: the student learns from the data alone")
    lineage = Lineage(
        kind="student",
        name=start.name,
        init=start.init or start.name,
        teacher=teacher_name,
        tokens=tokens,
        seed=seed,
        teacher_seed=teacher_seed,
        init_seed=start.seed,
        params=start.params,
    )
    inputs = [init, tokens_folder]
    inputs += [path for path in (teacher, targets, teacher_streams) if path]
    job = TrainingJob(
        student,
        streams,
        settings,
        objective,
        lineage,
        tokenizer=init,
        inputs=inputs,
        teacher=teacher_model,
        teacher_tokens=teacher_tokens,
        trunk=trunk,
    )
    return train_and_publish(job, run_paths)


def _alone(settings: Distill, vocab: int):
    """The objective of a student without a teacher."""
    return partial(
        data_objective,
        precision=settings.precision,
        vocab=vocab,
        chunk=settings.loss_chunk_tokens,
    )


def _check_model(settings: Distill, folder: Path, model, streams: Streams) -> None:
    """Raise CapgapError if a model cannot read the streams or its tokenizer is not theirs.

    Soft targets need one vocabulary. Heads may differ in the rows that pad them beyond the
    tokenizer, which no loss reads.
    """
    tokenizer_digest(folder)
    check_reads(
        model,
        folder,
        streams.meta,
        sequence_length=settings.sequence_length,
        setting="distill.sequence_length",
    )


def _check_streams(
    settings: Distill,
    streams: Streams,
    teacher: Path | None,
    teacher_streams: Path | None,
    store: TargetStore | None,
) -> Streams | None:
    """The streams in the tokens of a teacher with another tokenizer; None for any other teacher.

    Raises CapgapError if they are missing, not needed or not the teacher's, or for cached targets.
    """
    if teacher is None or store is not None:
        if teacher_streams is not None:
            given = "targets are given" if store is not None else "there is no teacher"
            raise CapgapError(
                f"--teacher-streams: {teacher_streams} is not used, because {given}; leave it out"
            )
        return None
    own = tokenizer_digest(teacher)
    if own == streams.meta.tokenizer_sha256:
        if teacher_streams is not None:
            raise CapgapError(
                f"--teacher-streams: {teacher_streams} is not needed, because {teacher} has the "
                "student's tokenizer; leave it out"
            )
        return None
    if settings.teacher_targets != "online":
        raise CapgapError(
            f"teacher_targets: {settings.teacher_targets} keeps probabilities of entries, and the "
            f"tokenizer of {teacher} is not the student's; set it to online"
        )
    if teacher_streams is None:
        raise CapgapError(
            f"{teacher}: its tokenizer is not the one that {streams.folder} was packed with; pack the "
            "same corpus with it (capgap pack) and name the folder with --teacher-streams (teacher_text "
            "in Python), or take a teacher with the student's tokenizer. In a study, name the teacher in "
            "teacher_tokenizers"
        )
    packed = Streams(teacher_streams)
    if packed.meta.tokenizer_sha256 != own:
        raise CapgapError(
            f"--teacher-streams: {teacher_streams} was not packed with the tokenizer of {teacher}; pack "
            "the corpus with it: capgap pack --tokenizer"
        )
    return packed


def _by_classes(
    settings: Distill,
    student: tuple[Path, Streams],
    teacher: tuple[Path, Streams],
    vocab: int,
    model,
) -> CrossTokenizer:
    """The objective of a teacher with another tokenizer. student, teacher: folder and streams.

    vocab: the student's entries. model: the teacher.
    """
    check_reads(
        model,
        teacher[0],
        teacher[1].meta,
        sequence_length=1,  # how many it reads for the student's is checked below
        setting="distill.sequence_length",
    )
    positions = getattr(model.config, "max_position_embeddings", None)
    theirs = min(teacher[1].meta.vocab_size, vocabulary_rows(model))
    text = aligned_text(*student, *teacher, rows=(vocab, theirs), positions=positions)
    text.check_windows(settings.sequence_length)
    entries = [entry_bytes(load_tokenizer(folder), folder) for folder, _ in (student, teacher)]
    classes = entry_classes(text, *entries)
    inside = text.taught_inside()
    print(
        f"the teacher has another tokenizer: {classes.count:,} classes of {len(entries[0]):,} and "
        f"{len(entries[1]):,} entries, which it teaches at {classes.taught_share:.1%} of the tokens; of "
        f"these, {classes.split_share:.2%} are pairs of two classes. It teaches {inside:.1%} of the tokens "
        f"inside its entries; {max(0.0, 1 - classes.taught_share - inside):.1%} learn from the data alone"
    )
    return CrossTokenizer(
        model,
        settings,
        vocab,
        text=text,
        comparison=Comparison(Pools.of(classes, vocab, theirs), Inside(text.inside)),
        teacher_vocab=theirs,
    )


def _with_targets(settings: Distill, store: TargetStore) -> Distill:
    """Settings completed by the kind of the given targets, if they name no kind themselves."""
    if settings.teacher_targets != "online":
        return settings
    made = store.record.settings
    given = settings.model_dump(exclude_none=True) | {
        "teacher_targets": made.kind,
        "target_entries": made.entries,
        "unique_tokens": made.unique_tokens,
        "teacher_precision": made.precision,
    }
    return check_section(Distill, given, f"{store.folder}: settings of its targets")


def _rows_of(store: TargetStore, vocab: int) -> int:
    """Entries of the vocabulary for a student of `vocab` rows and cached targets.

    Raises CapgapError if the student has fewer rows than the targets have entries.
    """
    if vocab < store.record.vocab_size:
        raise CapgapError(
            f"{store.folder}: the targets name up to {store.record.vocab_size} entries, the student has "
            f"rows for {vocab}; set teacher_targets to online, or take a student with as many rows"
        )
    return store.record.vocab_size


@by_hand
def pack_text(
    pattern: str, student: Path, out: Path, teacher: Path | None = None
) -> tuple[Path, Path | None]:
    """Pack text files into token streams; returns their folder, and that in a teacher's other tokenizer."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise CapgapError(
            "--data is for one process; pack the text before (capgap corpus, capgap pack) and name "
            "it with --token-streams"
        )
    from capgap.stages import (  # reading text takes longer to import than a short job has
        corpus,
        pack,
    )

    with temporary_folder(out.with_name("corpus").resolve()) as folder:
        texts, cores = folder / "corpus", available()
        record = corpus.run(FilesCorpus(source="files", pattern=pattern), texts, cores)
        for note in corpus.notes(record):
            print(note)
        packed, taught = pack.run(texts, student, out, cores), None
        if teacher is not None and tokenizer_digest(teacher) != packed.tokenizer_sha256:
            taught = out.with_name(f"{out.name}-of-teacher")
            pack.run(texts, teacher, taught, cores)
    print(f"packed {packed.tokens['train']:,} tokens of training text to {out}")
    return out, taught


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.distill", __doc__, Distill)
    parser.add_argument(
        "--init",
        "--student",
        dest="init",
        required=True,
        type=Path,
        help="folder of the initial weights",
    )
    parser.add_argument(
        "--teacher",
        nargs="?",
        type=Path,
        help="teacher's folder; without it and --targets the student learns from the data alone",
    )
    parser.add_argument(
        "--targets",
        nargs="?",
        type=Path,
        help="folder of the teacher's targets, which stand for the teacher; with --teacher, they "
        "must be its own",
    )
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--token-streams", type=Path, help="packed tokens folder")
    text.add_argument(
        "--data",
        metavar="PATTERN",
        help="text files instead, like 'texts/*.txt' (see capgap corpus): split by document and "
        "packed with the student's tokenizer to tokens/ in --out",
    )
    parser.add_argument(
        "--teacher-streams",
        nargs="?",
        type=Path,
        help="the same corpus packed with the tokenizer of a teacher that has another one; --data packs "
        "it itself",
    )
    parser.add_argument(
        "--tokens", required=True, type=count_argument, help="distillation budget, like 2.5M"
    )
    parser.add_argument(
        "--seed", type=seed_argument, default=0, help="seed of the data order (default 0)"
    )
    parser.add_argument(
        "--trunk", nargs="?", type=Path, help="trunk of a smaller budget to go on from (wsd)"
    )
    add_training_arguments(parser)
    args, settings = parser.parse(argv)
    streams, taught = args.token_streams, args.teacher_streams
    if args.data:
        if taught:
            parser.error("--teacher-streams belongs to --token-streams; --data packs them itself")
        own = None if args.targets else args.teacher
        streams, taught = pack_text(args.data, args.init, args.out / "tokens", own)
    record = run(
        settings,
        args.init,
        args.teacher,
        streams,
        tokens=args.tokens,
        seed=args.seed,
        run_paths=RunPaths(args.out, args.scratch, args.checkpoint_seconds, args.shard),
        trunk=args.trunk,
        targets=args.targets,
        teacher_streams=taught,
    )
    print(f"validation loss {record.last_val_loss_nats_per_token:.4f} nats per token")


if __name__ == "__main__":
    run_stage(main)
