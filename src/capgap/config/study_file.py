"""Read a study from its file and report all problems at once, each with key, value and fix."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from capgap.config import Section, Study
from capgap.errors import CapgapError, shown


def load_study(source: str | Path | dict) -> Study:
    """Read a study from a YAML file or from a dictionary.

    Raises CapgapError with every problem found, one per line, each with key, value and fix.
    """
    name = "the study" if isinstance(source, dict) else str(source)
    data = source if isinstance(source, dict) else _read_yaml(Path(source))
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        lines = [line for problem in error.errors() for line in _explain(problem, Study)]
        found = f"{len(lines)} problems" if len(lines) > 1 else "a problem"
        text = "\n  ".join([f"{name} has {found}:", *lines])
        if any(problem["loc"] for problem in error.errors()):
            text += "\nwhether the sections fit together is checked once this is fixed"
        raise CapgapError(text) from None


def check_section(section: Any, data: dict, where: str) -> Any:
    """Validate one section (a Section class or a union of them); errors as in `load_study`."""
    try:
        return TypeAdapter(section).validate_python(data)
    except ValidationError as error:
        lines = [f"  {line}" for problem in error.errors() for line in _explain(problem, section)]
        raise CapgapError(f"{where}:\n" + "\n".join(lines)) from None


class _Loader(yaml.SafeLoader):
    """YAML in which a repeated key in one section is an error, because the first would be lost."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                mark = node.value[i][0].start_mark
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' occurs twice in one section", mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise CapgapError(
            f"{path}: no such file; name a study (--study FILE), or start one (capgap init)"
        ) from None
    except UnicodeDecodeError as error:
        raise CapgapError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line, column = error.problem_mark.line + 1, error.problem_mark.column + 1
        raise CapgapError(
            f"{path}, line {line}, column {column}: not valid YAML: {error.problem}"
        ) from None
    except yaml.YAMLError as error:
        raise CapgapError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise CapgapError(
            f"{path}: sections are nested too deeply to be read; a study has at most four levels"
        ) from None
    if not isinstance(data, dict):
        raise CapgapError(
            f"{path}: a study is a mapping of keys, got {type(data).__name__}; config.yaml is one"
        )
    return data


# Messages for pydantic's type errors that fit a YAML file.
WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number is wanted"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is wanted"),
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"), "a section with keys is wanted"
    ),
    "list_type": "a list is wanted, like [1, 2]",
    "string_type": "a text is wanted",
    "too_short": "at least one is needed",
}


def _explain(problem: dict, root: Any) -> list[str]:
    """Sentences on one pydantic problem, with key, value, meaning of the key and a hint."""
    kind, loc, value = problem["type"], problem["loc"], problem["input"]
    if kind == "extra_forbidden":
        key, _, sections = _place(loc[:-1], root)
        name = str(loc[-1])
        return [f"{key + '.' if key else ''}{name}: unknown key{_hint(name, sections, root)}"]
    key, field, sections = _place(loc, root)
    if kind.startswith("union_tag"):
        tags = [tag for section in sections for tag in tags_of(section)]
        got = f"got '{problem['ctx']['tag']}'" if kind == "union_tag_invalid" else "it is missing"
        return [f"{key + '.' if key else ''}source: must be one of {', '.join(tags)}; {got}"]
    meaning = f" ({field.description})" if field and not sections else ""
    if kind == "missing":
        return [f"{key}: missing{meaning}"]
    message = WANTED.get(kind) or problem["msg"].removeprefix("Value error, ")
    if not key:
        return message.split("\n")
    got = "nothing" if value is None else shown(repr(value))
    got = "" if isinstance(value, dict | list | BaseModel) else f", got {got}"
    return [f"{key}: {message[0].lower()}{message[1:]}{got}{meaning}"]


def _place(loc: tuple, root: Any) -> tuple[str, Any, list[type[Section]]]:
    """(key in the file, its field, sections allowed there) of a pydantic location.

    A pydantic location also has the members of unions, which are no keys of the file.
    """
    parts, field, sections, named = [], None, sections_in(root), False
    for part in loc:
        if named:  # a teacher's name
            named = False
        elif len(sections) > 1:
            sections = [section for section in sections if part in tags_of(section)]
            continue
        elif sections and part in sections[0].model_fields:
            field = sections[0].model_fields[part]
            sections, named = sections_in(field.annotation), get_origin(field.annotation) is dict
        elif isinstance(part, str):
            continue
        parts.append(str(part))
    return ".".join(parts), field, sections


def sections_in(annotation: Any) -> list[type[Section]]:
    """Section classes in a type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def tags_of(section: type[Section]) -> tuple[str, ...]:
    """Values of `source` that choose a section among its union."""
    return get_args(section.model_fields["source"].annotation)


def _hint(name: str, sections: list[type[Section]], root: Any) -> str:
    """A hint for an unknown key: a similar key, or the section that has it."""
    own = [key for section in sections for key in section.model_fields]
    close = difflib.get_close_matches(name, own, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    for key, field in getattr(root, "model_fields", {}).items():
        others = sections_in(field.annotation)
        if not {*others} & {*sections} and any(name in s.model_fields for s in others):
            return f" (it belongs into the section '{key}')"
    return f"; known here: {', '.join(dict.fromkeys(own))}"
