"""
Make the tokenizer of a study: train a byte-level BPE, or take a teacher's.

IN   the corpus folder, or a teacher's model folder
OUT  a folder that AutoTokenizer loads
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from capgap.config import TeacherTokenizer, Tokenizer, TrainedTokenizer
from capgap.data.text_store import split_texts
from capgap.errors import CapgapError
from capgap.records.artifacts import open_folder, publish_folder
from capgap.stages.base import StageParser, out_folder, run_stage

END_OF_TEXT = "<|endoftext|>"


def run(settings: TrainedTokenizer | TeacherTokenizer, source: Path, out: Path) -> int:
    """Write the tokenizer; entries of its vocabulary. `source` is the corpus or the teacher."""
    if isinstance(settings, TeacherTokenizer):
        return _copy(open_folder(source), out)
    return _train(settings.vocab_size, source, out)


def _train(vocab_size: int, corpus: Path, out: Path) -> int:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a job, and one order of counting
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    texts = split_texts(corpus, "train")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False
    )
    if bpe.get_vocab_size() < vocab_size:
        raise CapgapError(
            f"tokenizer.vocab_size: the training text supports only {bpe.get_vocab_size()} "
            f"entries, not {vocab_size}; lower it or use a larger corpus"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )
    with publish_folder(out) as folder:
        tokenizer.save_pretrained(folder)
    return vocab_size


def _copy(teacher: Path, out: Path) -> int:
    from capgap.engine.models import TOKENIZER_FILES, load_tokenizer

    tokenizer = load_tokenizer(teacher)
    if tokenizer.eos_token_id is None:
        raise CapgapError(
            f"{teacher}: its tokenizer has no end-of-text token to close documents; name one in its "
            "tokenizer_config.json (eos_token)"
        )
    with publish_folder(out) as folder:
        for name in TOKENIZER_FILES:
            if (teacher / name).is_file():
                shutil.copyfile(teacher / name, folder / name)
    return len(tokenizer)


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.tokenizer", __doc__, Tokenizer)
    parser.add_argument(
        "--source-folder",
        required=True,
        type=Path,
        help="corpus folder to train on, or teacher's model folder to copy from",
    )
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    args, settings = parser.parse(argv)
    print(f"vocabulary: {run(settings, args.source_folder, args.out)} entries")


if __name__ == "__main__":
    run_stage(main)
