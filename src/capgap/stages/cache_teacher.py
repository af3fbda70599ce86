"""
Cache a teacher's probabilities on the training text once, for every student, seed and ablation arm.

Only the first `unique_tokens` tokens' worth of windows at fixed places are covered, and students
learn from these. The disk space is printed first, and it is an error if it does not fit.
A job that was killed is resumed.

IN   teacher's model folder, token streams (the training split)
OUT  folder with shard-*.safetensors and targets.json
"""

from __future__ import annotations

from pathlib import Path

import torch

from capgap.config import TargetsStage
from capgap.data.token_streams import Streams, lattice
from capgap.engine.counting import forward_flops
from capgap.engine.models import (
    check_reads,
    load_shape,
    read_lineage,
    vocabulary_rows,
)
from capgap.engine.parallel import ONE_PROCESS, DistContext, join
from capgap.engine.resuming import RunPaths, discard, hold_state, state_key
from capgap.engine.streaming import load_frozen
from capgap.engine.teacher_targets import RECORD, Unfinished, compute_targets, gather, require_space
from capgap.errors import CapgapError, out_of_memory
from capgap.pruning.store import weights_digest
from capgap.records.artifacts import (
    check_folder,
    folder_of,
    is_first_process,
    open_folder,
    publish_folder,
)
from capgap.records.run_records import TargetsRecord
from capgap.stages.base import (
    StageParser,
    add_state_arguments,
    add_stream_argument,
    out_folder,
    run_stage,
)


def run(
    settings: TargetsStage,
    teacher: Path,
    tokens_folder: Path,
    run_paths: RunPaths,
    *,
    stream: bool = False,
    dist: DistContext = ONE_PROCESS,
) -> TargetsRecord | None:
    """Compute and publish the targets of one teacher; None in processes that do not publish.

    stream: run it layer by layer from disk, though it may fit. dist: the processes that share the
    text.
    """
    teacher, streams, out = open_folder(teacher), Streams(tokens_folder), folder_of(run_paths.out)
    text, length = streams["train"], settings.sequence_length
    # rows that pad a head beyond the tokenizer are left out
    vocab = min(streams.meta.vocab_size, vocabulary_rows(load_shape(teacher)))
    if settings.entries > vocab:
        raise CapgapError(
            f"distill.target_entries: {settings.entries} is more than the {vocab} entries of the "
            f"vocabulary of {teacher}; lower it"
        )
    check_folder(out)
    windows = len(lattice(len(text), length, settings.unique_tokens))
    sources = {
        "weights_sha256": weights_digest(teacher),
        "stream_sha256": streams.digest("train"),
        "stream_tokens": len(text),
        "vocab_size": vocab,
    }
    scratch = run_paths.scratch / state_key(settings, sources, [teacher])
    held = hold_state(scratch, out) if is_first_process() else None
    dist.wait()  # until no other job writes there
    unfinished = Unfinished(scratch, settings, windows, vocab, dist)
    saved = int(dist.sum(torch.tensor(unfinished.saved))) * length
    print(f"targets of {teacher}: {require_space(settings, vocab, scratch, saved)}", flush=True)
    try:
        model = _load(settings, teacher, streams, stream)
        compute_targets(
            unfinished,
            model,
            text,
            settings,
            checkpoint_seconds=run_paths.checkpoint_seconds,
            bos_id=streams.meta.bos_id,
        )
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise CapgapError(
            f"out of memory in the targets of {teacher}, held in {settings.precision}; what was "
            f"computed is saved in {scratch}. To need less, lower batch_tokens of the targets from "
            f"{settings.batch_tokens} (in a study: distill.micro_batch_tokens), or set "
            "distill.teacher_precision to bfloat16"
        ) from None
    if held is None:
        return None
    tokens = windows * length
    with publish_folder(out) as folder:
        tail = gather(unfinished, folder)
        lineage = read_lineage(teacher, model)
        record = TargetsRecord(
            teacher=lineage.name,
            teacher_seed=lineage.seed,
            settings=settings,
            **sources,
            tokens=tokens,
            bytes_per_token=settings.bytes_per_token(vocab),
            windows_per_shard=unfinished.per_shard,
            mean_tail_mass=tail / tokens if settings.kind == "top_k" else None,
            forward_flops=tokens * forward_flops(model, length),
        )
        (folder / RECORD).write_text(record.to_json(), encoding="utf-8")
    discard(scratch, out)
    held.close()
    return record


def _load(settings: TargetsStage, teacher: Path, streams: Streams, stream: bool) -> torch.nn.Module:
    """The teacher on its device, in its precision."""
    model = load_frozen(teacher, settings.precision, stream=stream)
    check_reads(
        model,
        teacher,
        streams.meta,
        sequence_length=settings.sequence_length,
        setting="distill.sequence_length",
    )
    return model


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.cache_teacher", __doc__, TargetsStage)
    parser.add_argument("--teacher", required=True, type=Path, help="the teacher's model folder")
    parser.add_argument("--token-streams", required=True, type=Path, help="packed tokens folder")
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    add_state_arguments(parser)
    add_stream_argument(parser)
    args, settings = parser.parse(argv)
    run_paths = RunPaths(args.out, args.scratch, args.checkpoint_seconds)
    with join() as dist:
        record = run(
            settings, args.teacher, args.token_streams, run_paths, stream=args.stream, dist=dist
        )
    if record is None:
        return
    print(
        f"{record.tokens:,} tokens, {record.bytes_per_token} bytes each"
        + (f"; mean mass of the tail {record.mean_tail_mass:.3f}" if record.mean_tail_mass else "")
    )


if __name__ == "__main__":
    run_stage(main)
