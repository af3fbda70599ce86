"""How teachers are cut down to students."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from capgap.config.section import Count, Precision, Section, Seed


class Calibration(Section):
    """The training text that a teacher is run on for pruning."""

    calibration_sequences: int = Field(
        64,
        gt=0,
        description="training sequences over which importance is averaged and on which weights are "
        "refitted",
    )
    sequence_length: int = Field(512, ge=2, description="tokens per calibration sequence")
    seed: Seed = Field(
        0, description="seed of the choice of calibration sequences and of random scores"
    )


class Score(Calibration):
    """How the importance of a teacher's units is measured."""

    criterion: Literal["mask_gradient", "activation", "magnitude", "random"] = Field(
        "mask_gradient",
        description="importance of heads, neurons and channels: mask_gradient (first-order change "
        "of the loss, the paper's), activation (mean magnitude of their outputs, Minitron's), "
        "magnitude (norm of their weights), random",
    )
    precision: Precision = Field(
        "float32", description="of the model's matmuls and logits when units are scored"
    )


class Depth(Section):
    """How many layers a pruned model keeps, and which."""

    depth: Literal["keep", "keep_middle", "drop_middle", "block_influence"] = Field(
        "keep",
        description="which layers stay: all (keep), the middle ones (keep_middle, MiniMA's), the "
        "first and the last (drop_middle), or those that change their input's direction most "
        "(block_influence)",
    )
    widths: Literal["nearest_count", "proportional"] = Field(
        "nearest_count",
        description="which heads, neurons and channels stay for a number of parameters: as many as "
        "come nearest to it (nearest_count), or the same fraction of each, so that the students of a "
        "family of teachers are a family, at the nearest number that allows it (proportional)",
    )
    layers: int | None = Field(
        None,
        gt=0,
        description="layers to keep, unless depth is keep; if not set, the same fraction as of "
        "every width, the cube root of the share of the parameters",
    )
    multiple_of: int = Field(
        1,
        gt=0,
        description="hidden channels, neurons and channels of all heads together are multiples of "
        "this: 32 for quantisation in blocks of 32 (GGUF q8_0), 64 or 128 for kernels of GPUs",
    )

    @model_validator(mode="after")
    def _depth_for_layers(self):
        if self.depth == "keep" and self.layers is not None:
            raise ValueError(
                f"layers is {self.layers}, but depth is keep; set depth to keep_middle, drop_middle "
                "or block_influence, or leave layers out"
            )
        return self


class Cut(Depth, Calibration):
    """How a student is cut out of a scored teacher, and how its weights are refitted."""

    refit: Literal["none", "least_squares"] = Field(
        "none",
        description="what happens to the remaining weights: none (unchanged, the paper's "
        "rule) or least_squares (they are fitted, layer by layer, to the outputs of the whole model on the "
        "calibration sequences; the hidden channels are then principal components)",
    )


class Prune(Cut, Score):
    """How a teacher is pruned to a student's init."""

    def scoring(self) -> Score:
        """The settings that decide the scores."""
        return Score(**{key: getattr(self, key) for key in Score.model_fields})

    def cutting(self) -> Cut:
        """The settings that decide, besides the scores, what is cut."""
        return Cut(**{key: getattr(self, key) for key in Cut.model_fields})

    def shaping(self) -> Depth:
        """The settings that decide the shape of the student."""
        return Depth(**{key: getattr(self, key) for key in Depth.model_fields})


class StudyPrune(Prune):
    """Pruning in a study, where one student size is cut from several teachers."""

    one_shape: bool = Field(
        False,
        description="whether a student size has one shape for all teachers that it is pruned from, the one "
        "that the smallest teacher large enough gives; false keeps each teacher's proportions",
    )
    rounds: int = Field(
        1,
        ge=1,
        description="cuts, of equal ratios, in which a student is reached; after each but the last it "
        "is distilled from its teacher and scored anew",
    )
    round_tokens: Count | None = Field(
        None,
        gt=0,
        description="tokens of each of these distillations, which no budget of grid or final counts; "
        "with more than one round they are needed",
    )

    @model_validator(mode="after")
    def _tokens_of_rounds(self):
        if self.rounds > 1 and self.round_tokens is None:
            raise ValueError(
                f"round_tokens is needed with {self.rounds} rounds: how long a student is trained "
                "between two cuts; set it, or set rounds to 1"
            )
        if self.rounds == 1 and self.round_tokens is not None:
            raise ValueError(
                f"round_tokens is {self.round_tokens}, but with one round nothing is trained between "
                "cuts; set rounds to 2 or more, or leave round_tokens out"
            )
        return self
