"""
Hugging Face causal language models: build, load and save them, and check that they fit a text.

Any architecture goes through the same functions. Weights are safetensors, never pickle, and
no code that comes with a model is run.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
import transformers.utils
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from capgap.config.shapes import LlamaShape
from capgap.engine.counting import count_params
from capgap.errors import CapgapError, out_of_memory
from capgap.records.artifacts import open_folder
from capgap.records.run_records import Lineage, TokenStreams

# Importing a model class makes hundreds of thousands of objects; the collector would walk them all
# again and again (0.6 CPU seconds of a job's start). SciPy is only used by detection losses there.
gc.disable()
transformers.utils.is_scipy_available = lambda: False
from transformers import (  # noqa: E402
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from capgap.engine.attention import attend  # noqa: E402
from capgap.engine.foreign import (  # noqa: E402
    architecture_of,
    attention_of,
    check_folder,
    copy_settings,
    read_config,
)

gc.enable()
gc.freeze()
transformers.utils.logging.disable_progress_bar()  # a log file is no place for redrawn bars
transformers.utils.logging.set_verbosity_error()  # what it warns of on loading is refused here
AttentionInterface.register("sdpa", attend)  # of which it is a case

LINEAGE = "lineage.json"
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def llama_config(
    shape: LlamaShape, *, max_positions: int, bos_id: int | None, eos_id: int | None
) -> LlamaConfig:
    """Configuration of a Llama model of the given shape."""
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max_positions,
        tie_word_embeddings=shape.tied,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=None,
    )


def new_model(config: LlamaConfig, seed: int) -> PreTrainedModel:
    """A randomly initialised model; the same seed gives the same bits."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def load_model(path: str | Path, *, dtype: torch.dtype | None = torch.float32) -> PreTrainedModel:
    """Load a folder (checked against its manifest if it has one), ready to evaluate.

    dtype: of the weights; None keeps that of the file, so that they stay mapped from it until they
    are used.
    """
    folder, architecture, config = _open_model(path)
    if not list(folder.glob("*.safetensors")):
        raise CapgapError(
            f"{folder}: no .safetensors weights; pickled weights are not loaded, convert them first"
        )
    try:
        model, report = architecture.from_pretrained(
            folder,
            config=config,
            dtype=dtype or _stored_type(folder),
            attn_implementation=attention_of(architecture),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise CapgapError(
            f"{folder}: this model cannot be loaded ({str(error).strip().splitlines()[0]}); its "
            "config.json or weights are damaged or do not belong together, so fetch or make it again"
        ) from None
    if missing := sorted(report["missing_keys"]):
        raise CapgapError(
            f"{folder}: its weights lack {missing[0]} and {len(missing) - 1} other tensors that its "
            "config.json asks for; they would be random. Fetch or make the model again"
        )
    return model.eval()


def _stored_type(folder: Path) -> torch.dtype:
    """The one type of all a folder's weights; float32 where there are several."""
    types = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            types |= {file.get_slice(name).get_dtype() for name in names}
    small = {"F16": torch.float16, "BF16": torch.bfloat16}
    return small.get(*types, torch.float32) if len(types) == 1 else torch.float32


def compute_device() -> torch.device:
    """Where a job computes: the GPU that is its own of those it sees, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def load_shape(path: str | Path) -> PreTrainedModel:
    """A folder's model without its weights: shapes only, and no memory for them."""
    _, architecture, config = _open_model(path)
    with torch.device("meta"):
        return architecture(config)


def _open_model(path: str | Path) -> tuple[Path, type[PreTrainedModel], PretrainedConfig]:
    """A checked folder, the class of its model and its configuration; no weights are read."""
    folder = open_folder(path)
    check_folder(folder)
    if not (folder / "config.json").exists():
        raise CapgapError(f"{folder}: no config.json, so not a Hugging Face model folder")
    settings = read_config(folder)
    architecture = architecture_of(folder, settings)
    try:
        config = architecture.config_class.from_dict(
            settings, attn_implementation=attention_of(architecture)
        )
    except Exception as error:  # each configuration validates its keys in its own way
        raise CapgapError(
            f"{folder}/config.json is no configuration of {architecture.__name__} "
            f"({(str(error).strip() or type(error).__name__).splitlines()[0]}); fetch the model again"
        ) from None
    return folder, architecture, config


def save_model(model: PreTrainedModel, folder: Path, lineage: Lineage, tokenizer: Path) -> None:
    """Fill an empty folder with a model, its lineage and a tokenizer's files."""
    model.save_pretrained(folder)
    (folder / LINEAGE).write_text(lineage.to_json(), encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file() and name.endswith("_config.json"):
            copy_settings(tokenizer / name, folder / name)
        elif (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def read_lineage(path: str | Path, model: PreTrainedModel) -> Lineage:
    """The lineage of a model folder; a folder from elsewhere counts as a teacher by its name."""
    folder = Path(path)
    if (folder / LINEAGE).is_file():
        return Lineage.read(folder / LINEAGE)
    return Lineage(kind="teacher", name=folder.resolve().name, params=count_params(model))


def load_tokenizer(folder: Path):
    """The tokenizer of a folder; CapgapError where it has none that can be read."""
    check_folder(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CapgapError(
            f"{folder}: no tokenizer.json, so no tokenizer; name a folder that has one"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CapgapError(
            f"{folder / 'tokenizer.json'} cannot be read ({error}); fetch or make it again"
        ) from None


def check_reads(
    model: PreTrainedModel, folder: Path, text: TokenStreams, *, sequence_length: int, setting: str
) -> None:
    """Raise CapgapError where a model cannot read token streams in sequences of this length.

    folder: of the model; where it has a tokenizer, it must be the one of the streams. text: what
    the streams are. setting: the key that `sequence_length` comes from.
    """
    if (folder / TOKENIZER_FILES[0]).is_file() and tokenizer_digest(
        folder
    ) != text.tokenizer_sha256:
        raise CapgapError(
            f"{folder}: its tokenizer ({model.config.vocab_size} entries) is not the one that the "
            f"token streams were packed with ({text.vocab_size} entries); models that are compared "
            "or taught need one tokenizer: pack the corpus with it, or take models of one family"
        )
    if model.config.vocab_size < text.vocab_size:
        raise CapgapError(
            f"{folder}: its vocabulary has {model.config.vocab_size} entries, the token streams use "
            f"{text.vocab_size}; pack the corpus with this model's tokenizer"
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and sequence_length > longest:
        raise CapgapError(
            f"{setting}: {sequence_length} is longer than the {longest} positions of {folder}; "
            "lower it"
        )


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of what decides which tokens a folder's tokenizer makes of a text: vocabulary, merges,
    added tokens and treatment of text, however the file writes them down.

    Raises CapgapError for a folder without a tokenizer.
    """
    path = folder / TOKENIZER_FILES[0]
    if not path.is_file():
        raise CapgapError(
            f"{path}: no such file, so it cannot be told whether models and text share a tokenizer; "
            "put the model's tokenizer.json there"
        )
    try:
        data = json.loads(Tokenizer.from_file(str(path)).to_str())
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CapgapError(f"{path} cannot be read ({error}); fetch or make it again") from None
    parts = [data[part] for part in ("model", "added_tokens", "normalizer", "pre_tokenizer")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
