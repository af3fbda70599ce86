"""The base class of all sections of a study's settings, and common types."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from capgap.config.counts import parse_count

Count = Annotated[int, BeforeValidator(parse_count)]
Precision = Literal["float32", "bfloat16"]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A group of settings: unknown keys are errors and values never change after loading."""

    memory_only: ClassVar[frozenset[str]] = frozenset()  # settings that change rounding at most
    watch_only: ClassVar[frozenset[str]] = frozenset()  # settings that change no bit and no rerun

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """Refuse true for a number: YAML reads yes and on as true, and pydantic reads that as 1."""
        for key, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(key)
            if field is None or bool in (field.annotation, *get_args(field.annotation)):
                continue
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, bool):
                    word = str(item).lower()
                    raise ValueError(f"{key} is not a yes-or-no question, got {word}")
        return data
