"""The grid of a study: which students, budgets, teachers and draws its law is fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from capgap.config.counts import format_count
from capgap.config.section import Count, Section, Seed

Size = Annotated[Count, Field(gt=0)]
SEEDS_OR_REPLICAS = (
    "seeds and replicas are both given; a replica has an order of the data of its own, so give one"
)
UNIQUE = (  # lists of the grid without repeats
    *("students", "inits", "given", "tokens", "tokens_per_param", "teacher_weights"),
    *("seeds", "replicas", "arms", "arm_seeds"),
)


class Draw(NamedTuple):
    """What chance decides in a run: the replica of its teacher and init, and its order of the data."""

    replica: int | None  # None in a study without replicas
    seed: int


class Grid(Section):
    """The runs the law is fitted on: students from larger teachers, at every budget and draw."""

    students: list[Size] = Field(
        default_factory=list,
        description="student sizes, parameters without embeddings; if not set, those of the given "
        "students",
    )
    inits: list[Literal["pruned", "random", "given"]] = Field(
        default_factory=lambda: ["pruned"],
        min_length=1,
        description="what the students start from, each with all teachers: pruned (from the run's own "
        "teacher), random (weights of the same shape), given (models that exist already, of their own "
        "size); there is one law for each",
    )
    given: list[str] | None = Field(
        None,
        min_length=1,
        description="given students, names of students or of teachers; if not set, all of the section "
        "students",
    )
    tokens: list[Size] = Field(
        default_factory=list, description="distillation budgets of every student, tokens"
    )
    tokens_per_param: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=list,
        description="distillation budgets in proportion to the student, tokens per parameter "
        "without embeddings; in addition to tokens",
    )
    teachers: dict[Size, list[str] | dict[Size, list[str]]] | None = Field(
        None,
        description="names of the teachers of each student, by its size: a list, or one for each "
        "budget in tokens; if not set, every teacher that is larger than the student",
    )
    teacher_ratio: list[float] | None = Field(
        None,
        description="smallest and largest size of a teacher, in sizes of its student; no limits if "
        "not set",
    )
    teacher_weights: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None,
        min_length=1,
        description="weights of the teacher's term in the loss, each with all students, teachers, budgets "
        "and draws, and a law of its own; distill.teacher_weight is one of them, and the only one if not set",
    )
    seeds: list[Seed] | None = Field(
        None, min_length=1, description="seeds of the data order, one run each"
    )
    replicas: list[Seed] | None = Field(
        None,
        min_length=1,
        description="repetitions with everything drawn anew, instead of seeds: teachers trained here, the "
        "text that pruning is calibrated on, random inits and the data order",
    )
    arms: list[Literal["no_teacher", "random_init", "cross_teacher"]] = Field(
        default_factory=list, description="ablation arms (control runs) in addition to the main arm"
    )
    arm_seeds: list[Seed] | None = Field(
        None, min_length=1, description="seeds, or replicas, of the control arms, if not all"
    )
    arm_inits: list[str] | None = Field(
        None,
        min_length=1,
        description="teachers whose pruned inits the control arms start from, if not all",
    )

    @model_validator(mode="after")
    def _alternatives(self):
        if not self.tokens and not self.tokens_per_param:
            raise ValueError("no budget is given; set tokens or tokens_per_param, or both")
        if self.seeds is None and self.replicas is None:
            raise ValueError(
                "no draw is given; set seeds (of the data order) or replicas (of teacher, init and "
                "data order), for example replicas: [1, 2]"
            )
        if self.seeds is not None and self.replicas is not None:
            raise ValueError(SEEDS_OR_REPLICAS)
        if self.teachers is not None and self.teacher_ratio is not None:
            raise ValueError("teachers and teacher_ratio both choose the teachers; give one")
        ratio = self.teacher_ratio
        if ratio is not None and not (len(ratio) == 2 and 1 <= ratio[0] < ratio[1]):
            raise ValueError(
                "teacher_ratio is the smallest and the largest size of a teacher in sizes of its "
                f"student, both at least 1, like [1.4, 11]; got {ratio}"
            )
        return self

    def sizes(self, given: dict[str, int]) -> list[int]:
        """Sizes of the students that are pruned or random; given: sizes of the given students."""
        return self.students or sorted(set(given.values()))

    def every_size(self, given: dict[str, int]) -> list[int]:
        """Sizes of all students of the grid, each once."""
        cut = self.sizes(given) if {*self.inits} & {"pruned", "random"} or not given else []
        return list(dict.fromkeys([*cut, *sorted(given.values())]))

    def budgets(self, student: int) -> list[int]:
        """Distillation budgets of a student, tokens, in the order they are given."""
        return [*self.tokens, *(round(ratio * student) for ratio in self.tokens_per_param)]

    def draws(self, *, of_arms: bool = False) -> list[Draw]:
        """The draws of the main arm, or of the control arms, in the order they are given."""
        chosen = self.replicas or self.seeds
        if of_arms and self.arm_seeds is not None:
            chosen = self.arm_seeds
        return [Draw(number if self.replicas else None, number) for number in chosen]

    def replica_numbers(self) -> list[int | None]:
        """The replicas of teachers and inits; [None] in a study without replicas."""
        return list(self.replicas) if self.replicas else [None]

    def ladder(self, student: int, tokens: int, sizes: dict[str, int]) -> list[str]:
        """Teachers of a student at a budget, smallest first; sizes: parameters by teacher."""
        named = set(sizes)
        if self.teachers is not None:
            listed = self.teachers.get(student, [])
            named = set(listed if isinstance(listed, list) else listed.get(tokens, []))
        if self.teacher_ratio is not None:
            low, high = self.teacher_ratio
            named = {name for name in sizes if low <= sizes[name] / student <= high}
        larger = (name for name in named if name in sizes and sizes[name] > student)
        return sorted(larger, key=lambda name: (sizes[name], name))


def repeats(key: str, values: list | None) -> Iterator[str]:
    """A problem if a value occurs twice in a list of settings."""
    if values and len(set(values)) < len(values):
        yield f"{key}: the same value occurs twice in {values}; leave one out"


def grid_problems(
    grid: Grid, sizes: dict[str, int], given: dict[str, int] | None = None
) -> Iterator[str]:
    """What does not fit together in a grid and its teachers, one sentence each.

    sizes: by teacher. given: sizes of the given students.
    """
    given = given or {}
    for key in UNIQUE:
        yield from repeats(f"grid.{key}", getattr(grid, key))
    if "pruned" not in grid.inits:
        if "cross_teacher" in grid.arms:
            yield (
                "grid.arms: cross_teacher distils pruned inits from other teachers, and pruned is not "
                "in grid.inits; add it there, or leave the arm out"
            )
        if grid.arm_inits:
            yield (
                "grid.arm_inits: names teachers whose pruned inits are used, and pruned is not in "
                "grid.inits; add it there, or leave the key out"
            )
    students = grid.every_size(given)
    for student in students:
        budgets = grid.budgets(student)
        equal = [tokens for tokens in grid.tokens if budgets.count(tokens) > 1]
        for tokens in set(equal) if len(set(grid.tokens)) == len(grid.tokens) else ():
            yield (
                f"grid.tokens_per_param: {tokens / student:g} gives student {format_count(student)} "
                f"{format_count(tokens)} tokens, which are in grid.tokens too; leave one out"
            )
    drawn, key = (grid.replicas, "replicas") if grid.replicas else (grid.seeds, "seeds")
    for seed in grid.arm_seeds or []:
        if seed not in drawn:
            yield f"grid.arm_seeds: {seed} is not in grid.{key}, so the arm would have no partner"
    yield from _listed_problems(grid, sizes, students)
    for name in grid.arm_inits or []:
        if name not in sizes:
            yield f"grid.arm_inits: no teacher is called {name}; {_known(sizes)}"
    for student in students:
        if student >= max(sizes.values()):
            continue  # reported by study_problems
        for tokens in grid.budgets(student):
            ladder, cell = grid.ladder(student, tokens, sizes), f"student {format_count(student)}"
            if not ladder and grid.teacher_ratio:
                ratios = sorted(size / student for size in sizes.values())
                yield (
                    f"grid.teacher_ratio: {cell} has no teacher between {grid.teacher_ratio[0]:g} and "
                    f"{grid.teacher_ratio[1]:g} times its size; there are "
                    f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}; widen it or add a teacher"
                )
                break
            if grid.arm_inits and grid.arms and ladder and not {*ladder} & {*grid.arm_inits}:
                yield (
                    f"grid.arm_inits: {cell} is distilled from {', '.join(ladder)}, none of which is "
                    f"named; name one of them, so that it has a control"
                )
                break


def _listed_problems(grid: Grid, sizes: dict[str, int], students: list[int]) -> Iterator[str]:
    """Problems of `grid.teachers`; students: their sizes."""
    if grid.teachers is None:
        return
    for student in students:
        if student not in grid.teachers:
            yield (
                f"grid.teachers: student {format_count(student)} is missing; list its teachers, or "
                "leave it out of the grid"
            )
    for student, listed in grid.teachers.items():
        key = f"grid.teachers.{format_count(student)}"
        if student not in students:
            yield f"{key}: no student of this size is in grid.students; add it there or leave it out"
            continue
        budgets = grid.budgets(student)
        if isinstance(listed, list):
            ladders = {key: listed}
        else:
            ladders = {f"{key}.{format_count(tokens)}": names for tokens, names in listed.items()}
            for tokens in listed:
                if tokens not in budgets:
                    yield (
                        f"{key}.{format_count(tokens)}: no budget of this student; it has "
                        f"{', '.join(map(format_count, budgets))}"
                    )
            for tokens in budgets:
                if tokens not in listed:
                    yield f"{key}: the budget of {format_count(tokens)} tokens is missing; list its teachers"
        for where, names in ladders.items():
            if not names:
                yield f"{where}: no teacher is named; name at least one"
            if len(set(names)) < len(names):
                yield f"{where}: the same teacher occurs twice in {names}; leave one out"
            for name in names:
                if name not in sizes:
                    yield f"{where}: no teacher is called {name}; {_known(sizes)}"
                elif sizes[name] <= student:
                    yield (
                        f"{where}: {name} has {sizes[name]:,} parameters without embeddings, which is "
                        "not more than the student; leave it out"
                    )


def _known(sizes: dict[str, int]) -> str:
    return f"there are {', '.join(sorted(sizes, key=sizes.get))}"
