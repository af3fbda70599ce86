"""
Train one Llama-shaped teacher from random weights.

IN   token streams, tokenizer folder
OUT  model/, curve.csv, train.json
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from capgap.config import PretrainStage
from capgap.data.token_streams import Streams
from capgap.engine.counting import count_params
from capgap.engine.models import check_reads, llama_config, load_tokenizer, new_model
from capgap.engine.objectives import data_objective
from capgap.engine.resuming import RunPaths
from capgap.engine.training_job import TrainingJob, train_and_publish
from capgap.records.artifacts import open_folder
from capgap.records.run_records import Lineage, TrainRecord
from capgap.stages.base import StageParser, add_training_arguments, run_stage

MAX_POSITIONS = 2048  # rotary positions cost nothing; pruning calibrates on longer sequences


def run(
    settings: PretrainStage, name: str, tokens_folder: Path, tokenizer: Path, run_paths: RunPaths
) -> TrainRecord:
    """Train and publish the teacher called `name`."""
    streams, tokenizer = Streams(tokens_folder), open_folder(tokenizer)
    end = load_tokenizer(tokenizer).eos_token_id
    config = llama_config(
        settings.shape(streams.meta.vocab_size),
        max_positions=max(MAX_POSITIONS, settings.sequence_length),
        bos_id=end,
        eos_id=end,
    )
    if settings.init_std is not None:
        config.initializer_range = settings.init_std
    model = new_model(config, settings.seed)
    check_reads(
        model,
        tokenizer,
        streams.meta,
        sequence_length=settings.sequence_length,
        setting="pretrain.sequence_length",
    )
    lineage = Lineage(
        kind="teacher",
        name=name,
        tokens=settings.tokens,
        seed=settings.seed,
        params=count_params(model),
    )
    objective = partial(
        data_objective,
        precision=settings.precision,
        vocab=streams.meta.vocab_size,
        chunk=settings.loss_chunk_tokens,
    )
    job = TrainingJob(
        model, streams, settings, objective, lineage, tokenizer=tokenizer, inputs=[tokens_folder]
    )
    return train_and_publish(job, run_paths)


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.pretrain", __doc__, PretrainStage)
    parser.add_argument("--name", required=True, help="name of the teacher")
    parser.add_argument("--token-streams", required=True, type=Path, help="packed tokens folder")
    parser.add_argument("--tokenizer", required=True, type=Path, help="tokenizer folder")
    add_training_arguments(parser)
    args, settings = parser.parse(argv)
    run_paths = RunPaths(args.out, args.scratch, args.checkpoint_seconds, args.shard)
    record = run(settings, args.name, args.token_streams, args.tokenizer, run_paths)
    print(f"validation loss {record.last_val_loss_nats_per_token:.4f} nats per token")


if __name__ == "__main__":
    run_stage(main)
