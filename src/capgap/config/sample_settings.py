"""What finished models write: continuations of held-out text, for a reader of the report."""

from __future__ import annotations

from pydantic import Field

from capgap.config.section import Count, Precision, Section, Seed


class SampleStage(Section):
    """How models continue held-out text."""

    prompts: int = Field(3, ge=1, le=20, description="places of the test text that are continued")
    prompt_tokens: Count = Field(
        48,
        ge=1,
        description="tokens of text before a continuation, or half of a document that has no more; a "
        "conversation gives its turns",
    )
    new_tokens: Count = Field(64, ge=1, description="tokens of a continuation at most")
    temperature: float = Field(
        0.7, ge=0, description="of the probabilities; 0 takes the most probable token each time"
    )
    seed: Seed = Field(0, description="of the random numbers, which all models share")
    precision: Precision = Field("float32", description="of matmuls and logits")


class Sample(SampleStage):
    """The section `sample` of a study."""

    teacher: bool = Field(
        True, description="whether the chosen teacher continues the prompts as well"
    )

    def stage(self) -> SampleStage:
        """What a job takes."""
        return SampleStage(**self.model_dump(exclude={"teacher"}))
