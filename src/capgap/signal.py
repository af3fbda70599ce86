"""
Compute what a teacher says about the training text once, for every student, seed and arm.

Only the first `unique_tokens` tokens' worth of windows at fixed places are covered, and students
learn from these. What it takes on disk is said before it starts, and refused where it does not fit.

IN   teacher's model folder, token streams (the training split)
OUT  folder with shard-*.safetensors and signal.json
"""

from __future__ import annotations

from pathlib import Path

from capgap.artifacts import open_folder, publish_folder
from capgap.config import SignalStage
from capgap.engine.models import (
    check_reads,
    compute_device,
    forward_flops,
    hold_frozen,
    load_model,
    read_lineage,
)
from capgap.engine.signals import RECORD, require_space, write_signal
from capgap.engine.streams import Streams
from capgap.errors import CapgapError
from capgap.pruning.store import weights_digest
from capgap.records import SignalRecord
from capgap.stage import StageParser, run_stage


def run(settings: SignalStage, teacher: Path, tokens_folder: Path, out: Path) -> SignalRecord:
    """Compute and publish the signal of one teacher."""
    teacher, streams = open_folder(teacher), Streams(tokens_folder)
    model = load_model(teacher, dtype=None)
    hold_frozen(model, settings.precision)
    model.to(compute_device())
    check_reads(
        model,
        teacher,
        streams.meta,
        sequence_length=settings.sequence_length,
        setting="distill.sequence_length",
    )
    vocab = streams.meta.vocab_size  # rows that pad a head beyond the tokenizer are left out
    if settings.entries > vocab:
        raise CapgapError(
            f"distill.signal_entries: {settings.entries} is more than the {vocab} entries of the "
            f"vocabulary of {teacher}; lower it"
        )
    print(f"signal of {teacher}: {require_space(settings, vocab, out)}", flush=True)
    with publish_folder(out) as folder:
        written = write_signal(folder, model, streams["train"], settings, vocab)
        record = SignalRecord(
            teacher=read_lineage(teacher, model).name,
            settings=settings,
            weights_sha256=weights_digest(teacher),
            stream_sha256=streams.digest("train"),
            stream_tokens=len(streams["train"]),
            vocab_size=vocab,
            bytes_per_token=settings.bytes_per_token(vocab),
            forward_flops=written["tokens"] * forward_flops(model, settings.sequence_length),
            **written,
        )
        (folder / RECORD).write_text(record.to_json(), encoding="utf-8")
    return record


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.signal", __doc__, SignalStage)
    parser.add_argument("--teacher", required=True, type=Path, help="the teacher's model folder")
    parser.add_argument("--token-streams", required=True, type=Path, help="packed tokens folder")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    args, settings = parser.parse(argv)
    record = run(settings, args.teacher, args.token_streams, args.out)
    print(
        f"{record.tokens:,} tokens, {record.bytes_per_token} bytes each"
        + (f"; mean mass of the tail {record.mean_tail_mass:.3f}" if record.mean_tail_mass else "")
    )


if __name__ == "__main__":
    run_stage(main)
