"""
Measure a model on held-out text.

IN   model folder, token streams
OUT  metrics.json: loss in nats per token and bits per byte on validation and test, sizes, FLOPs; with
     --text, <text>.json: the loss on that further text alone
"""

from __future__ import annotations

import math
from pathlib import Path

from capgap.config import Evaluate
from capgap.data.token_streams import Streams
from capgap.engine.counting import count_params, forward_flops
from capgap.engine.evaluation import bits_per_byte, mean_loss
from capgap.engine.models import check_reads, read_lineage
from capgap.engine.parallel import ONE_PROCESS, DistContext, join
from capgap.engine.streaming import load_frozen
from capgap.errors import CapgapError
from capgap.records.artifacts import is_first_process, open_folder, write_text
from capgap.records.paths import TEXT_SPLIT
from capgap.records.run_records import Metrics, SplitLoss, TextLoss
from capgap.stages.base import StageParser, add_stream_argument, out_file, run_stage

MAX_LOSS = 700  # nats per token; the perplexity of more is no number any more


def run(
    settings: Evaluate,
    model_folder: Path,
    tokens_folder: Path,
    *,
    stream: bool = False,
    dist: DistContext = ONE_PROCESS,
) -> Metrics:
    """Loss on the validation and the test split, with the model's size and cost.

    stream: run the model layer by layer from disk, though it may fit. dist: the processes that share
    the text.
    """
    measured = _Measured(settings, model_folder, tokens_folder, stream, dist)
    model, folder = measured.model, measured.folder
    lineage = read_lineage(folder, model)
    counted = count_params(model)
    if lineage.params != counted:
        raise CapgapError(
            f"{folder}: lineage.json says {lineage.params}, the weights have {counted}"
        )
    return Metrics(
        lineage=lineage,
        validation=measured.on("validation"),
        test=measured.on("test"),
        forward_flops_per_token=forward_flops(model, settings.sequence_length),
    )


def on_text(
    settings: Evaluate,
    model_folder: Path,
    tokens_folder: Path,
    text: str,
    *,
    stream: bool = False,
    dist: DistContext = ONE_PROCESS,
) -> TextLoss:
    """Loss on a further text, by its name; of text without conversations all tokens count.

    stream, dist: as in `run`.
    """
    if Streams(tokens_folder).meta.completion_tokens is None:
        settings = settings.model_copy(update={"loss_on": "all"})
    measured = _Measured(settings, model_folder, tokens_folder, stream, dist)
    lineage = read_lineage(measured.folder, measured.model)
    return TextLoss(lineage=lineage, text=text, measured=measured.on(TEXT_SPLIT))


class _Measured:
    """A model and the token streams that it is measured on."""

    def __init__(
        self,
        settings: Evaluate,
        model_folder: Path,
        tokens_folder: Path,
        stream: bool,
        dist: DistContext,
    ):
        self.settings, self.folder, self.dist = settings, open_folder(model_folder), dist
        self.streams = Streams(tokens_folder)
        self.model = load_frozen(self.folder, settings.precision, stream=stream)
        check_reads(
            self.model,
            self.folder,
            self.streams.meta,
            sequence_length=settings.sequence_length,
            setting="evaluate.sequence_length",
        )

    def on(self, split: str) -> SplitLoss:
        """The loss on a split; CapgapError if the model has diverged."""
        settings, meta = self.settings, self.streams.meta
        stream, mask = self.streams[split], self.streams.mask(split, settings.loss_on)
        loss = mean_loss(
            self.model,
            stream,
            sequence_length=settings.sequence_length,
            batch_tokens=settings.batch_tokens,
            split=split,
            precision=settings.precision,
            vocab=meta.vocab_size,
            bos_id=meta.bos_id,
            mask=mask,
            dist=self.dist,
        )
        if not loss < MAX_LOSS:
            raise CapgapError(
                f"{self.folder}: its {split} loss is {loss:.4g} nats per token, so the model has "
                "diverged; train it again with a lower learning_rate"
            )
        tokens, text_bytes = len(stream) - 1, meta.bytes[split]
        if mask is not None:
            tokens, text_bytes = int(mask[1:].sum()), meta.completion_bytes[split]
        return SplitLoss(
            loss_nats_per_token=loss,
            perplexity=math.exp(loss),
            bits_per_byte=bits_per_byte(loss, tokens, text_bytes),
            tokens=tokens,
            bytes=text_bytes,
        )


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.evaluate", __doc__, Evaluate)
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--token-streams", required=True, type=Path, help="packed tokens folder")
    parser.add_argument("--out", required=True, type=out_file, help="metrics.json to write")
    parser.add_argument(
        "--text", metavar="NAME", help="the streams are a further text of this name"
    )
    add_stream_argument(parser)
    args, settings = parser.parse(argv)
    with join() as dist:
        if args.text:
            found = on_text(
                settings, args.model, args.token_streams, args.text, stream=args.stream, dist=dist
            )
            record, measured = found.to_json(), f"{args.text}: {found.measured.bits_per_byte:.4f}"
        else:
            metrics = run(settings, args.model, args.token_streams, stream=args.stream, dist=dist)
            record, test = metrics.to_json(), metrics.test
            measured = (
                f"test loss {test.loss_nats_per_token:.4f} nats per token, {test.bits_per_byte:.4f}"
            )
        if is_first_process():
            write_text(args.out, record)
    print(f"{measured} bits per byte")


if __name__ == "__main__":
    run_stage(main)
