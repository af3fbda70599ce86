"""Settings of the configuration as keyword arguments, described where they are defined; and counts."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from pydantic.fields import FieldInfo

from capgap.config.counts import parse_count
from capgap.config.section import Section
from capgap.errors import CapgapError, shown

F = TypeVar("F", bound=Callable)
PathLike: TypeAlias = str | os.PathLike[str]
Count: TypeAlias = int | str  # 2_500_000 or "2.5M"


def checked_count(name: str, value: Count) -> int:
    """A count that a parameter was given; CapgapError, naming the parameter, for anything else."""
    try:
        count = parse_count(value)
    except ValueError as error:
        raise CapgapError(f"{name}: {error}, got {shown(value)}") from None
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise CapgapError(
            f"{name}: a whole number above 0, or text like '2.5M', got {shown(value)}"
        )
    return count


def takes_settings(section: type[Section], *left_out: str) -> Callable[[F], F]:
    """Show the fields of a section as keyword-only parameters of a function with `**settings`.

    They come into its signature, which notebooks complete from, and into its docstring. left_out:
    fields that the function takes by a parameter of its own.
    """
    fields = {k: f for k, f in section.model_fields.items() if k not in left_out}

    def described(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else _default(field),
                annotation=field.annotation,
            )
            for name, field in fields.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added])
        lines = "\n".join(_line(name, field) for name, field in fields.items())
        function.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\nSettings:\n{lines}\n"
        return function

    return described


def _default(field: FieldInfo):
    return field.get_default(call_default_factory=True)


def _line(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default {_default(field)!r}"
    return textwrap.fill(
        f"{name}: {field.description} ({default})",
        width=100,
        initial_indent="    ",
        subsequent_indent="        ",
    )
