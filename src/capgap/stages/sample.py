"""
Continue held-out text with the final student, its alternatives and the chosen teacher.

All models see the same prompts and the same random numbers. The loss measures how good a model is; the
continuations show what text of such a loss looks like.

IN   model folders, the corpus, token streams
OUT  samples.json: the prompts, how the text itself continues, and each model's continuations
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from capgap.config import SampleStage
from capgap.data.boundaries import boundaries
from capgap.data.encoding import Encoder
from capgap.data.prompts import prompts
from capgap.data.text_store import is_chat
from capgap.data.token_streams import Streams
from capgap.engine.models import check_reads, load_tokenizer, read_lineage
from capgap.engine.sampling import continuations
from capgap.engine.streaming import load_frozen
from capgap.records.artifacts import open_folder, write_text
from capgap.records.run_records import SampledModel, SampledPrompt, SamplesRecord
from capgap.stages.base import StageParser, out_file, run_stage


def run(
    settings: SampleStage, model_folders: list[Path], corpus: Path, tokens_folder: Path
) -> SamplesRecord:
    """Every model's continuations; models in the order given.

    The corpus's text is encoded with the tokenizer of the first model, which all must share. Raises
    CapgapError for a model that cannot read the streams or has no position left behind a prompt. One
    with fewer positions than `new_tokens` takes writes until they end.
    """
    meta = Streams(tokens_folder).meta
    folders = [open_folder(folder) for folder in model_folders]
    tokenizer = load_tokenizer(folders[0])
    encoder = Encoder(tokenizer, boundaries(tokenizer, folders[0]))
    asked = prompts(
        corpus,
        encoder,
        count=settings.prompts,
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
    )
    longest = max(len(prompt.ids) for prompt in asked)

    def text(ids) -> str:
        return tokenizer.decode([int(i) for i in ids], clean_up_tokenization_spaces=False)

    models = []
    for folder in folders:
        model = load_frozen(folder, settings.precision)
        check_reads(
            model, folder, meta, sequence_length=longest + 1, setting="sample.prompt_tokens"
        )
        places = getattr(model.config, "max_position_embeddings", None) or math.inf
        written = continuations(
            model,
            [prompt.ids for prompt in asked],
            new_tokens=min(settings.new_tokens, places - longest),
            temperature=settings.temperature,
            draws=[
                np.random.Generator(np.random.Philox(key=[settings.seed, number]))
                for number in range(len(asked))
            ],
            vocab=meta.vocab_size,
            end_id=encoder.eos,
            precision=settings.precision,
        )
        models.append(
            SampledModel(lineage=read_lineage(folder, model), texts=list(map(text, written)))
        )
    return SamplesRecord(
        settings=settings,
        conversations=is_chat(corpus, "test"),
        prompts=[
            SampledPrompt(document=p.document, text=text(p.spoken), follows=text(p.follows))
            for p in asked
        ],
        models=models,
    )


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.sample", __doc__, SampleStage)
    parser.add_argument(
        "--models", required=True, nargs="+", type=Path, help="model folders that share a tokenizer"
    )
    parser.add_argument("--corpus", required=True, type=Path, help="corpus folder")
    parser.add_argument("--token-streams", required=True, type=Path, help="packed tokens folder")
    parser.add_argument("--out", required=True, type=out_file, help="samples.json to write")
    args, settings = parser.parse(argv)
    record = run(settings, args.models, args.corpus, args.token_streams)
    write_text(args.out, record.to_json())
    print(f"{len(record.models)} models continued {len(record.prompts)} prompts")


if __name__ == "__main__":
    run_stage(main)
