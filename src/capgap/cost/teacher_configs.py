"""
Sizes and shapes of fetched teachers, before their weights are here.

Only config.json, about a kB, or the header of a GGUF file is read.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from capgap.config import (
    HubTeacher,
    ModelShape,
    PackageTeacher,
    PathTeacher,
    PretrainedTeacher,
    Study,
)
from capgap.config.study_file import load_study
from capgap.cost.architectures import FAMILY_OF_CLASS, architecture, shape_of_config
from capgap.data.hub import Absent, download_config
from capgap.data.packages import file_in_package
from capgap.data.places import check_contained, named_place
from capgap.errors import CapgapError
from capgap.records.reading import read_json

# Settings that add parameters which `architecture` does not count, with their usual values.
UNUSUAL = {"attention_bias": (False, None), "mlp_bias": (False, None)}


class Size(NamedTuple):
    """A model's size and shape, known before it is fetched."""

    params_non_embedding: int
    shape: ModelShape | None  # None for an architecture whose cost is not known


def open_study(source: str | Path | dict) -> Study:
    """A study with the sizes and shapes of all its teachers; see `load_study` and `complete`."""
    return complete(load_study(source))


def complete(study: Study) -> Study:
    """The study with `params_non_embedding` and `plan.shapes` of every fetched teacher and given student.

    What the study states stays. Raises CapgapError with the problems of all models at once.
    """
    data = study.model_dump(exclude_none=True)
    absent, problems = [], []
    for name, teacher in study.models.items():
        section = "teachers" if name in study.teachers else "students"
        if isinstance(teacher, PretrainedTeacher):
            continue
        stated = teacher.params_non_embedding
        if stated and name in study.plan.shapes:
            continue
        try:
            size = size_of(teacher)
        except Absent:
            if not stated:
                absent.append(f"{name} ({teacher.model} at {teacher.revision})")  # pyright: ignore[reportAttributeAccessIssue]
            continue
        except CapgapError as error:
            if not stated:
                problems.append(f"{section}.{name}: {error}")
            continue
        if stated not in (None, size.params_non_embedding):
            problems.append(
                f"{section}.{name}.params_non_embedding: the study states {stated:,}, the model has "
                f"{size.params_non_embedding:,}; leave the key out"
            )
        data[section][name]["params_non_embedding"] = size.params_non_embedding
        if size.shape:
            shapes = data["plan"].setdefault("shapes", {})
            shapes.setdefault(name, size.shape.model_dump(exclude_none=True))
    if absent:
        problems.append(
            f"models {', '.join(absent)}: config.json, from which their sizes are read, is not in "
            "the cache of the hub, and the hub cannot be reached. Run capgap pin once where there is a "
            "network (a kB for each), or take HF_HOME from a machine that has them, or state "
            "params_non_embedding"
        )
    if problems:
        raise CapgapError("\n".join(problems))
    return load_study(data)


def size_of(teacher: HubTeacher | PackageTeacher | PathTeacher) -> Size:
    """Size and shape of a teacher. Raises Absent if the hub is needed and cannot be reached."""
    match teacher:
        case HubTeacher():
            return _of_folder(download_config(teacher.model, teacher.revision))
        case PackageTeacher():
            path = file_in_package(teacher.package, teacher.file)
            if not path.exists():
                raise CapgapError(f"package {teacher.package} holds no {teacher.file}")
            return _of_gguf(path) if path.is_file() else _of_folder(path)
        case PathTeacher():
            folder = named_place(teacher.path, "path of a teacher")
            check_contained(folder / "config.json", folder, "path of a teacher")
            return _of_folder(folder)
    raise AssertionError(teacher)


def _of_folder(folder: Path) -> Size:
    """From config.json: by arithmetic for known families, else from the model without weights."""
    path = folder / "config.json"
    if not path.exists():
        raise CapgapError(f"{path}: no such file, so not a Hugging Face model folder")
    config = read_json(path)
    family = FAMILY_OF_CLASS.get((config.get("architectures") or ["?"])[0])
    usual = all(config.get(key) in values for key, values in UNUSUAL.items())
    if family and (usual or family == "gpt_neox"):
        shape = shape_of_config(config, str(path))
        return Size(architecture(shape).whole().non_embedding, shape)
    from capgap.engine.counting import count_params  # seconds to import, for other families
    from capgap.engine.models import load_shape

    return Size(count_params(load_shape(folder)).non_embedding, None)


@cache
def _of_gguf(path: Path) -> Size:
    """From the header of a GGUF file."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith("tokenizer.")
        }
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        arch = fields["general.architecture"]
        hidden, vocab = tensors["token_embd.weight"].shape.tolist()
    except (ValueError, KeyError, IndexError) as error:
        raise CapgapError(f"{path} is no GGUF file that can be read ({error})") from None
    outside = ("token_embd.", "output.", "position_embd.", "rope_freqs.")
    counted = sum(t.n_elements for name, t in tensors.items() if not name.startswith(outside))
    family = {"gptneox": "gpt_neox"}.get(arch, arch)
    if family not in FAMILY_OF_CLASS.values():
        return Size(counted, None)

    def read(key: str) -> int | None:
        return fields.get(f"{arch}.{key}")

    shape = ModelShape(
        family=family,
        layers=read("block_count"),
        hidden=hidden,
        heads=read("attention.head_count"),
        kv_heads=read("attention.head_count_kv"),
        head_dim=read("attention.key_length"),
        intermediate=read("feed_forward_length"),
        vocab=vocab,
        positions=read("context_length"),
        tied="output.weight" not in tensors,
    )
    same = architecture(shape).whole().non_embedding == counted
    return Size(counted, shape if same else None)
