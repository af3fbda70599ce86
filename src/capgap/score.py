"""
Score how much each attention group, MLP neuron and hidden channel of a teacher matters.

Done once a teacher; every student size is then cut by the same scores.

IN   model folder, token streams (the training split)
OUT  folder with importance.safetensors: groups (layers x key-value heads), neurons (layers x
     neurons), hidden (channels)
"""

from __future__ import annotations

from pathlib import Path

import torch

from capgap.artifacts import open_folder, publish_folder
from capgap.config import Prune
from capgap.engine.models import load_model
from capgap.engine.streams import Streams, calibration_batch, check_long_enough
from capgap.errors import CapgapError
from capgap.pruning.importance import Importance, measure
from capgap.pruning.store import weights_digest, write_importance
from capgap.stage import StageParser, run_stage


def run(settings: Prune, model_folder: Path, tokens_folder: Path, out: Path) -> Importance:
    """Measure the importance of all units of a model and publish it."""
    torch.set_num_threads(1)
    folder, streams = open_folder(model_folder), Streams(tokens_folder)
    model = load_model(folder)
    _check(settings, folder, model, streams)
    inputs_BT, labels_BT = calibration_batch(
        streams["train"],
        sequence_length=settings.sequence_length,
        count=settings.calibration_sequences,
        seed=settings.seed,
    )
    importance = measure(model, inputs_BT, labels_BT)
    with publish_folder(out) as temporary:
        write_importance(temporary, importance, weights_digest(folder))
    return importance


def _check(settings: Prune, folder: Path, model, streams: Streams) -> None:
    """Refuse streams that the model cannot read."""
    if model.config.vocab_size < streams.meta.vocab_size:
        raise CapgapError(
            f"{folder}: its vocabulary has {model.config.vocab_size} entries, the token streams use "
            f"{streams.meta.vocab_size}; pack the corpus with this model's tokenizer"
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and settings.sequence_length > longest:
        raise CapgapError(
            f"prune.sequence_length: {settings.sequence_length} is longer than the {longest} "
            f"positions of {folder}; lower it"
        )
    check_long_enough(streams["train"], settings.sequence_length, "train")


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.score", __doc__, Prune)
    parser.add_argument("--model", required=True, type=Path, help="the teacher's model folder")
    parser.add_argument(
        "--token-streams",
        "--tokens",
        dest="tokens",
        required=True,
        type=Path,
        help="packed tokens folder",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    args, settings = parser.parse(argv)
    importance = run(settings, args.model, args.tokens, args.out)
    (layers, groups), neurons = importance.groups.shape, importance.neurons.shape[1]
    print(
        f"scored {layers} layers x {groups} groups and {neurons} neurons, "
        f"{len(importance.hidden)} hidden channels, "
        f"on {settings.calibration_sequences} sequences of {settings.sequence_length} tokens"
    )


if __name__ == "__main__":
    run_stage(main)
