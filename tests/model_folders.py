"""Byte-level BPE tokenizers of a few hundred entries, and model folders as stages write them."""

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from capgap.engine.counting import count_params
from capgap.engine.models import save_model
from capgap.records.artifacts import publish_folder
from capgap.records.run_records import Lineage

END = "<|endoftext|>"


def byte_level_bpe(
    texts, entries, *, special=(END,), min_frequency=2, bos_token=END, eos_token=END, **options
):
    """A tokenizer trained on some texts; options: of PreTrainedTokenizerFast."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, entries, min_frequency, special_tokens=[*special], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=bos_token, eos_token=eos_token, **options
    )


def publish_model(model, folder, words, **lineage):
    """A model and its tokenizer (in the folder `words`) in a published folder."""
    about = {"kind": "teacher", "name": "t", "params": count_params(model)} | lineage
    with publish_folder(folder) as new:
        save_model(model, new, Lineage(**about), words)
    return folder
