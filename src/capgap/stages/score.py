"""
Score how much each attention group, MLP neuron, hidden channel and layer of a teacher matters.

This is done once for each teacher; every student size is then pruned by the same scores.

IN   model folder, token streams (the training split)
OUT  folder with importance.safetensors: groups (layers x key-value heads), neurons (layers x
     neurons), hidden (channels), layers
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from capgap.config import Calibration, Score
from capgap.data.token_streams import Streams, calibration_batch, check_long_enough
from capgap.engine.models import check_reads
from capgap.engine.parallel import ONE_PROCESS, DistContext, join
from capgap.engine.streaming import load_frozen
from capgap.pruning.importance import Importance, measure
from capgap.pruning.store import weights_digest, write_importance
from capgap.records.artifacts import is_first_process, open_folder, publish_folder
from capgap.stages.base import StageParser, add_stream_argument, out_folder, run_stage


def run(
    settings: Score,
    model_folder: Path,
    tokens_folder: Path,
    out: Path,
    *,
    stream: bool = False,
    dist: DistContext = ONE_PROCESS,
) -> Importance:
    """Measure the importance of all units of a model and publish it.

    stream: run the model layer by layer from disk, though it may fit. dist: the processes that share
    the sequences.
    """
    torch.set_num_threads(1)
    folder, streams = open_folder(model_folder), Streams(tokens_folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    model = load_frozen(folder, settings.precision, stream=stream, scratch=out.parent)
    inputs_BT, labels_BT = calibration(settings, model, folder, streams)
    importance = measure(
        model,
        inputs_BT,
        labels_BT,
        settings.criterion,
        seed=settings.seed,
        precision=settings.precision,
        dist=dist,
    )
    if is_first_process():
        with publish_folder(out) as temporary:
            write_importance(temporary, importance, weights_digest(folder))
    return importance


def calibration(
    settings: Calibration, model: PreTrainedModel, folder: Path, streams: Streams
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequences that a model is run on for pruning: inputs and labels, both B x T.

    Raises CapgapError if the model cannot read them, or if there are too few tokens.
    """
    check_reads(
        model,
        folder,
        streams.meta,
        sequence_length=settings.sequence_length,
        setting="prune.sequence_length",
    )
    check_long_enough(streams["train"], settings.sequence_length, "train")
    return calibration_batch(
        streams["train"],
        sequence_length=settings.sequence_length,
        count=settings.calibration_sequences,
        seed=settings.seed,
        bos_id=streams.meta.bos_id,
    )


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.score", __doc__, Score)
    parser.add_argument("--model", required=True, type=Path, help="the teacher's model folder")
    parser.add_argument(
        "--token-streams",
        "--tokens",
        dest="tokens",
        required=True,
        type=Path,
        help="packed tokens folder",
    )
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    add_stream_argument(parser)
    args, settings = parser.parse(argv)
    with join() as dist:
        importance = run(settings, args.model, args.tokens, args.out, stream=args.stream, dist=dist)
    (layers, groups), neurons = importance.groups.shape, importance.neurons.shape[1]
    print(
        f"scored {layers} layers x {groups} groups and {neurons} neurons, "
        f"{len(importance.hidden)} hidden channels, "
        f"by {settings.criterion} on {settings.calibration_sequences} sequences of "
        f"{settings.sequence_length} tokens"
    )


if __name__ == "__main__":
    run_stage(main)
