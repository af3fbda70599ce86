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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer

from capgap.config.shapes import LlamaShape
from capgap.engine.counting import count_params
from capgap.errors import CapgapError, out_of_memory
from capgap.records.artifacts import open_folder
from capgap.records.reading import read_json
from capgap.records.run_records import Lineage, TokenStreams

# Importing a model class makes hundreds of thousands of objects; the collector would walk them all
# again and again (0.6 CPU seconds of a job's start).
collects = gc.isenabled()
gc.disable()
from transformers import (  # noqa: E402
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

if collects:
    gc.enable()

from capgap.engine.foreign import attention_of, check_folder, copy_settings  # noqa: E402
from capgap.engine.forward import output_form  # noqa: E402
from capgap.engine.mmap_weights import release  # noqa: E402
from capgap.engine.model_class import (  # noqa: E402
    IN_WRAPPER,
    ModelClass,
    cause,
    check_sizes,
    model_class,
    names_in_wrapper,
    read_settings,
)
from capgap.engine.stored_tensors import StoredTensors  # noqa: E402
from capgap.engine.weight_files import Weights, read_weights  # noqa: E402

LINEAGE = "lineage.json"
WEIGHTS = "model.safetensors"
GENERATION = "generation_config.json"
BESIDE_WEIGHTS = ("model.safetensors.index.json", GENERATION)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


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
    are used. If the folder has other parts besides a language model, only the language model is loaded.
    Raises CapgapError naming the file for weights that config.json does not ask for, that are
    missing, or that are not numbers.
    """
    folder, found = _opened(path)
    weights = read_weights(folder)
    config = _configure(folder, found, weights)
    for file in weights.ignored:
        print(f"{file}: not read, for it is not part of the model", flush=True)
    with tempfile.TemporaryDirectory() as view:  # without other files, which must not be read
        for file in [*weights.files, *(folder / name for name in BESIDE_WEIGHTS)]:
            if file.is_file():
                (Path(view) / file.name).symlink_to(file.resolve())
        try:
            if not (folder / GENERATION).is_file():  # transformers fails without one
                GenerationConfig.from_model_config(config).save_pretrained(view)
            model, report = found.architecture.from_pretrained(
                view,
                config=config,
                attn_implementation=attention_of(found.architecture),
                trust_remote_code=False,
                dtype=dtype or _stored_type(weights),
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that they are in the report, by name
                output_loading_info=True,
                key_mapping=IN_WRAPPER if found.wrapped else None,
            )
        except Exception as error:  # each architecture refuses what it cannot read in its own way
            if out_of_memory(error):
                raise
            raise CapgapError(
                f"{folder}: this model cannot be loaded ({cause(error, found.settings, view)}); its "
                "config.json or weights are damaged or do not belong together, so fetch or make it again"
            ) from None
    model.name_or_path = model.config.name_or_path = ""
    _check_report(folder, found, weights, report)
    _check_finite(folder, model)
    tables = model.get_input_embeddings(), model.get_output_embeddings()
    if (
        all(hasattr(table, "weight") for table in tables)
        and tables[0].weight is not tables[1].weight
    ):
        model.config.tie_word_embeddings = False  # as the file has it, whatever config.json says
    return model.eval()


def _configure(folder: Path, found: ModelClass, weights: Weights | None) -> PreTrainedConfig:
    """The configuration of a folder's model, checked against the sizes of its weights."""
    if weights is not None:
        check_sizes(folder, found.settings, weights)
    try:
        return found.architecture.config_class.from_dict(
            found.settings, attn_implementation=attention_of(found.architecture)
        )
    except Exception as error:  # each configuration validates its keys in its own way
        raise CapgapError(
            f"{folder}/config.json does not describe a {found.architecture.__name__} "
            f"({cause(error, found.settings)}); correct it, or fetch the model again"
        ) from None


def _check_report(folder: Path, found: ModelClass, weights: Weights, report: dict) -> None:
    """Raise CapgapError if weights are missing, or some have no place in the model."""
    name = found.architecture.__name__
    if wrong := sorted(report.get("mismatched_keys") or []):
        tensor, stored, asked = wrong[0]
        raise CapgapError(
            f"{folder}: its weights hold {tensor} with shape {list(stored)}, but config.json asks for "
            f"{list(asked)}{_others(wrong, ', and for another shape of ')}; correct config.json, or "
            "fetch the model again"
        )
    if missing := sorted(report["missing_keys"]):
        raise CapgapError(
            f"{folder}: its weights lack {missing[0]}{_others(missing)} that its config.json asks for "
            f"as a {name}; they would be random. Fetch or make the model again"
        )
    unexpected = sorted(key for key in report["unexpected_keys"] if not _derived(key, weights))
    if found.wrapped:  # other parts of it have no place here
        unexpected = sorted(set(unexpected) & names_in_wrapper(weights))
    if unexpected:
        raise CapgapError(
            f"{folder}: its weights hold {unexpected[0]}{_others(unexpected)}, for which a {name} as "
            "config.json describes it has no place, so it would be another model; correct config.json, "
            "or fetch the model again"
        )


def _others(names: list, before: str = " and ") -> str:
    """The words for all but the first of some tensors."""
    count = len(names) - 1
    return f"{before}{count} other tensor{'s' if count > 1 else ''}" if count else ""


def _derived(key: str, weights: Weights) -> bool:
    """Whether a tensor follows from the configuration: frequencies and masks that old files hold."""
    tensor = weights.tensors.get(key)
    mask = tensor is not None and len(tensor.shape) == 4 and key.endswith(".bias")
    return mask or key.endswith(("rotary_emb.inv_freq", ".masked_bias"))


def _check_finite(folder: Path, model: PreTrainedModel) -> None:
    """Raise CapgapError for a weight that is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel():
            bounds = torch.stack(torch.aminmax(parameter.detach()))
            release(parameter.detach())
            if not bounds.isfinite().all():
                raise CapgapError(
                    f"{folder}: its weights are not all numbers: {name} holds NaN or infinity; the "
                    "training that made them diverged or the file is damaged, so take another"
                )


def _stored_type(weights: Weights) -> torch.dtype:
    """The one type of all a folder's weights; float32 if there are several."""
    types = {tensor.dtype for tensor in weights.tensors.values()}
    small = {"F16": torch.float16, "BF16": torch.bfloat16}
    return small.get(*types, torch.float32) if len(types) == 1 else torch.float32


def compute_device() -> torch.device:
    """Where a job computes: the GPU that is its own of those it sees, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def load_shape(path: str | Path) -> PreTrainedModel:
    """A folder's model without its weights: shapes only, and no memory for them."""
    folder, found = _opened(path)
    weights = read_weights(folder) if any(folder.glob("*.safetensors")) else None
    config = _configure(folder, found, weights)
    try:
        with torch.device("meta"):
            return found.architecture(config)
    except Exception as error:  # of any kind, as in `load_model`
        raise CapgapError(
            f"{folder}/config.json describes a {found.architecture.__name__} that cannot be built "
            f"({cause(error, found.settings)}); correct it, or fetch the model again"
        ) from None


class NotOneByOne(CapgapError):
    """Tensors of a model are put together from several in its files, so they cannot be read alone."""


def load_hollow(path: str | Path) -> tuple[PreTrainedModel, StoredTensors]:
    """A folder's model with all buffers and no weights, and where its weights can be read.

    Raises CapgapError as `load_model` does, except that numbers are checked when they are read, and
    NotOneByOne if tensors of the model are put together from several of the folder.
    """
    folder, found = _opened(path)
    weights = read_weights(folder)
    config = _configure(folder, found, weights)
    try:
        with _without_weights():
            model = found.architecture(config)
    except Exception as error:  # of any kind, as in `load_model`
        raise CapgapError(
            f"{folder}/config.json describes a {found.architecture.__name__} that cannot be built "
            f"({cause(error, found.settings)}); correct it, or fetch the model again"
        ) from None
    tensors = model.state_dict(keep_vars=True)
    stored = StoredTensors(folder, weights, model, wrapped=found.wrapped)
    if getattr(model.config, "tie_word_embeddings", False) and _stored_apart(model, stored):
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False  # as the file has it, whatever config.json says
        tensors = model.state_dict(keep_vars=True)
    there = {id(tensors[name]) for name in stored.places}  # tied ones need be there once
    report = {
        "missing_keys": [name for name, tensor in tensors.items() if id(tensor) not in there],
        "unexpected_keys": [key for key in stored.unexpected if not _derived(key, weights)],
        "mismatched_keys": [
            (name, at.shape, tuple(tensors[name].shape))
            for name, at in stored.places.items()
            if at.shape != tuple(tensors[name].shape)
        ],
    }
    if report["missing_keys"] and report["unexpected_keys"]:
        raise NotOneByOne(
            f"{folder}: its files hold {stored.unexpected[0]}, which transformers turns into other "
            f"tensors of a {found.architecture.__name__}, so it cannot be run layer by layer; run it "
            "where it fits whole"
        )
    _check_report(folder, found, weights, report)
    read_from = {id(tensors[name]): place for name, place in stored.places.items()}
    stored.places = {name: read_from[id(tensor)] for name, tensor in tensors.items()}
    return model.eval().requires_grad_(False), stored


def _stored_apart(model: PreTrainedModel, stored: StoredTensors) -> bool:
    """Whether a head that config.json ties to the embeddings is stored as a tensor of its own."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        return False
    named = model.state_dict(keep_vars=True).items()
    names = [name for name, one in named if one is head.weight and name in stored.places]
    if len(names) < 2:
        return False
    first, *others = (stored.read(name) for name in names)
    return not all(torch.equal(first, other) for other in others)


@contextmanager
def _without_weights() -> Iterator[None]:
    """Modules that are made inside have parameters without memory, and buffers as ever.

    Under `torch.device("meta")` buffers that no file holds, like frequencies of positions, would be
    lost.
    """
    register = torch.nn.Module.register_parameter

    def without_memory(self, name, param):
        if param is not None and not param.is_meta:
            param = torch.nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    torch.nn.Module.register_parameter = without_memory  # pyright: ignore[reportAttributeAccessIssue]  # restored below
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def _opened(path: str | Path) -> tuple[Path, ModelClass]:
    """A checked folder that leads nowhere else, and the class of its model; no weights are read."""
    folder = open_folder(path)
    check_folder(folder)
    return folder, model_class(folder, read_settings(folder))


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
    """The tokenizer of a folder; CapgapError if it has none that can be read."""
    check_folder(folder)
    if not (folder / "tokenizer.json").is_file():
        refuse_sentencepiece(folder)
        raise CapgapError(
            f"{folder}: no tokenizer.json, so no tokenizer; name a folder that has one"
        )
    for name in TOKENIZER_FILES:
        if (folder / name).is_file() and name.endswith(".json"):
            read_json(folder / name)
    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        return PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CapgapError(
            f"{folder / 'tokenizer.json'} holds no tokenizer that can be read ({error}); fetch or make "
            "it again"
        ) from None


def sentencepiece_file(folder: Path) -> Path | None:
    """The SentencePiece model of a folder without tokenizer.json, if it has one."""
    if (folder / "tokenizer.json").is_file():
        return None
    names = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def refuse_sentencepiece(folder: Path) -> None:
    """Raise CapgapError for a folder whose only tokenizer is a SentencePiece model."""
    if file := sentencepiece_file(folder):
        raise CapgapError(
            f"{file}: a SentencePiece model without tokenizer.json, which all stages read; capgap "
            f"fetch --source path --path {folder} converts it"
        )


def check_reads(
    model: PreTrainedModel, folder: Path, text: TokenStreams, *, sequence_length: int, setting: str
) -> None:
    """Raise CapgapError if a model cannot read token streams in sequences of this length.

    folder: of the model; if it has a tokenizer, it must be the one of the streams. text: what
    the streams are. setting: the key that `sequence_length` comes from.
    """
    if (folder / TOKENIZER_FILES[0]).is_file() and tokenizer_digest(
        folder
    ) != text.tokenizer_sha256:
        raise CapgapError(
            f"{folder}: its tokenizer ({vocabulary_rows(model)} entries) is not the one that the "
            f"token streams were packed with ({text.vocab_size} entries); pack the corpus with it, or take "
            "models of one family. In a study, name a teacher with another tokenizer in teacher_tokenizers"
        )
    rows = vocabulary_rows(model)
    largest = text.vocab_size - 1 if text.largest_id is None else text.largest_id
    if rows <= largest:
        raise CapgapError(
            f"{folder}: its vocabulary has {rows} entries, the token streams use ids up to "
            f"{largest}; pack the corpus with this model's tokenizer"
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and sequence_length > longest:
        raise CapgapError(
            f"{setting}: {sequence_length} is longer than the {longest} positions of {folder}; "
            "lower it"
        )
    output_form(model)


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Entries of the vocabulary that a model has a row for, in its embedding and its output head."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    return min(t.weight.shape[0] for t in tables if t is not None and hasattr(t, "weight"))


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of what decides which tokens a folder's tokenizer makes of a text: vocabulary, merges,
    added tokens and treatment of text, however the file writes them down.

    Raises CapgapError for a folder without a tokenizer.
    """
    path = folder / TOKENIZER_FILES[0]
    if not path.is_file():
        raise CapgapError(
            f"{path}: no such file, so it cannot be checked that models and text share a tokenizer; "
            "put the model's tokenizer.json there"
        )
    try:
        data = json.loads(Tokenizer.from_file(str(path)).to_str())
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CapgapError(f"{path} cannot be read ({error}); fetch or make it again") from None
    parts = [data[part] for part in ("model", "added_tokens", "normalizer", "pre_tokenizer")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
