"""
Bring in a teacher that exists already: from the hub, an installed package or a local folder.

IN   a model id with a pinned commit, a file in a package, or a folder
OUT  a model folder like every other: safetensors, tokenizer, lineage, manifest
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from capgap.artifacts import publish_folder, sha256
from capgap.config import HubTeacher, PackageTeacher, PathTeacher, Teacher
from capgap.engine.models import count_params, load_model, save_model
from capgap.errors import CapgapError
from capgap.packages import package_folder
from capgap.records import Lineage
from capgap.stage import StageParser, run_stage

WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]


def run(teacher: HubTeacher | PackageTeacher | PathTeacher, name: str, out: Path) -> Lineage:
    """Fetch, check and publish the teacher called `name`."""
    folder, gguf = _locate(teacher)
    if gguf:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=gguf,
            dtype="float32",
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
    else:
        model = load_model(folder)
    kind = {"gguf_file": gguf} if gguf else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **kind)
    params = count_params(model)
    if params.non_embedding != teacher.params_non_embedding:
        raise CapgapError(
            f"teachers.{name}.params_non_embedding: the study says "
            f"{teacher.params_non_embedding:,}, the model has {params.non_embedding:,}; "
            "write the second number"
        )
    lineage = Lineage(kind="teacher", name=name, params=params)
    with publish_folder(out) as target, tempfile.TemporaryDirectory() as words:
        tokenizer.save_pretrained(words)
        save_model(model, target, lineage, Path(words))
    return lineage


def _locate(teacher: HubTeacher | PackageTeacher | PathTeacher) -> tuple[Path, str | None]:
    """Folder of the model on this machine, and the name of its GGUF file if it is one."""
    match teacher:
        case PathTeacher():
            if not Path(teacher.path).is_dir():
                raise CapgapError(f"teacher path {teacher.path}: no such folder")
            return Path(teacher.path), None
        case PackageTeacher():
            path = package_folder(teacher.package) / teacher.file
            if not path.exists():
                raise CapgapError(f"package {teacher.package} holds no {teacher.file}")
            if teacher.sha256 and sha256(path) != teacher.sha256:
                raise CapgapError(
                    f"{teacher.file} of package {teacher.package} has another SHA-256 than the "
                    "study says; install the version the study was written for"
                )
            return (path, None) if path.is_dir() else (path.parent, path.name)
        case HubTeacher():
            return _download(teacher), None


def _download(teacher: HubTeacher) -> Path:
    where = f"{teacher.model} at commit {teacher.revision[:12]}"
    try:
        folder = snapshot_download(teacher.model, revision=teacher.revision, allow_patterns=WANTED)
    except GatedRepoError:
        raise CapgapError(
            f"{where} is gated: accept its licence on its page on the hub, then give a read token "
            "with 'hf auth login' or in HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError:
        raise CapgapError(
            f"{where} is neither in the cache nor reachable; connect once, or fetch it on a "
            "machine with a network and use source: path"
        ) from None
    except HfHubHTTPError as error:
        raise CapgapError(f"{where} cannot be had: {error}") from None
    if not list(Path(folder).glob("*.safetensors")):
        raise CapgapError(
            f"{where} has no safetensors weights, and pickled ones are not loaded; "
            "choose a commit that has them"
        )
    return Path(folder)


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.fetch", __doc__, Teacher)
    parser.add_argument("--name", required=True, help="name of the teacher")
    parser.add_argument("--out", required=True, type=Path, help="model folder to write")
    args, teacher = parser.parse(argv)
    lineage = run(teacher, args.name, args.out)
    print(f"{lineage.params.non_embedding:,} parameters without embeddings")


if __name__ == "__main__":
    run_stage(main)
