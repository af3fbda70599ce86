"""
The design of a study: which runs it consists of, derived from the settings alone.

A run is one trained student: (student size, init, teacher, tokens, seed). Its init is of a kind of
grid.inits: pruned from the teacher that distils it (the main arm), random, or given, a model that
exists already. A given student has its own size; pruned and random ones have those of grid.students.
The control arms change one thing each:

  no_teacher     the same init, trained on the data alone
  random_init    a random init of the same size, distilled by each teacher, and without one
  cross_teacher  the init pruned from A, distilled by B, for every pair A, B

Each weight of the teacher's term (grid.teacher_weights) has all runs with a teacher; those without one
are shared. Runs at distill.teacher_weight have no level for it in their paths, so that adding a weight
moves none of them.

A replica of a study has its own draw of every teacher that is trained here and of every init; its
files lie in a folder of its own, replica-<n>/. A fetched teacher has one draw, shared by all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from capgap.config import CollectStage, Grid, PretrainedTeacher, Study
from capgap.config.counts import format_count, parse_count

NONE = "none"  # the teacher of the arm without a teacher
RANDOM = "random"  # the init with random weights
GIVEN = "given-"  # begins the name of the init that is a given student

ROUND_SEEDS = 1000  # between the seeds of one round's order of the text and the next one's


class Run(NamedTuple):
    """Identity of one trained student; the strings are the levels of its path."""

    student: str
    init: str
    teacher: str
    tokens: str
    seed: int
    replica: str = ""  # level of the path, see `replica_level`
    weight: str = ""  # the same, see `weight_level`


def pruned_from(teacher: str) -> str:
    """Name of the init that pruning a teacher gives."""
    return f"pruned-{teacher}"


def given_init(name: str) -> str:
    """Name of the init that a given student is."""
    return f"{GIVEN}{name}"


def init_kind(init: str) -> str:
    """Kind of an init by its name: 'pruned', 'random' or 'given'; other names stand for themselves."""
    if init.startswith(pruned_from("")):
        return "pruned"
    return "given" if init.startswith(GIVEN) else init


def arm_of(init: str, teacher: str) -> str:
    """The arm a run belongs to, from its init and its teacher: 'main' or another arm's name."""
    if init == RANDOM:
        return "random_init"
    if teacher == NONE:
        return "no_teacher"
    if init.startswith(GIVEN):
        return "given"
    return "main" if init == pruned_from(teacher) else "cross_teacher"


def teacher_sizes(study: Study) -> dict[str, int]:
    """Parameters without embeddings of every teacher of a study."""
    return {name: study.teacher_size(name) for name in study.teachers}


def given_sizes(study: Study) -> dict[str, int]:
    """Parameters without embeddings of every given student of a study; empty if there are none."""
    return {name: study.teacher_size(name) for name in study.given_names()}


def runs_of(study: Study) -> list[Run]:
    """Every run of a study's grid, see `grid_runs`."""
    return grid_runs(
        study.grid, teacher_sizes(study), given_sizes(study), study.distill.teacher_weight
    )


def weight_level(weight: float, usual: float) -> str:
    """The level that a weight of the teacher's term has in paths, with its slash; none for the usual one."""
    return "" if weight == usual else f"weight-{weight}/"


def weight_of(level: str, usual: float) -> float:
    """The weight of a level in paths, see `weight_level`."""
    return float(level.removeprefix("weight-").removesuffix("/")) if level else usual


def replica_level(replica: int | None) -> str:
    """The level that a replica has in paths, with its slash; nothing without replicas."""
    return "" if replica is None else f"replica-{replica}/"


def replica_number(level: str) -> int | None:
    """The replica of a level in paths, see `replica_level`."""
    return int(level.removeprefix("replica-").removesuffix("/")) if level else None


def teacher_level(study: Study, teacher: str, level: str) -> str:
    """The level at which a replica's teacher lies: its own for one that is trained here."""
    return level if isinstance(study.models[teacher], PretrainedTeacher) else ""


def teacher_draws(study: Study) -> list[tuple[str, str]]:
    """Every teacher with the level of each of its draws: (name, level)."""
    return _draws(study, study.teachers)


def student_draws(study: Study) -> list[tuple[str, str]]:
    """The same for the given students that are not teachers."""
    return _draws(study, [name for name in study.given_names() if name not in study.teachers])


def _draws(study: Study, names: Iterable[str]) -> list[tuple[str, str]]:
    levels = [replica_level(number) for number in study.grid.replica_numbers()]
    draws = [(name, teacher_level(study, name, level)) for level in levels for name in names]
    return list(dict.fromkeys(draws))


def scored_teachers(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """The teachers whose units are scored for the inits of runs: (name, level of the init's draw)."""
    pruned = (run for run in runs if init_kind(run.init) == "pruned")
    return sorted({(run.init.removeprefix(pruned_from("")), run.replica) for run in pruned})


class Round(NamedTuple):
    """Identity of a pruned init between two cuts; the strings are the levels of its path."""

    student: str
    init: str
    number: int  # after this cut, counted from 1
    replica: str = ""


def rounds_of(study: Study, runs: Iterable[Run]) -> list[Round]:
    """Every init between two cuts of runs, first cuts first; none with one round."""
    pruned = (run for run in runs if init_kind(run.init) == "pruned")
    inits = dict.fromkeys((run.student, run.init, run.replica) for run in pruned)
    return [
        Round(student, init, number, level)
        for student, init, level in inits
        for number in range(1, study.prune.rounds)
    ]


def round_seed(study: Study, number: int, replica: int | None) -> int:
    """Seed of the order of the text after a cut: another one for every round and every replica."""
    return study.score_stage(replica).seed + ROUND_SEEDS * number


def teaching(study: Study, runs: Iterable[Run]) -> list[tuple[str, str]]:
    """The teachers that runs are distilled from: (name, level of its draw)."""
    taught = {(run.teacher, run.replica) for run in runs if run.teacher != NONE}
    return sorted({(name, teacher_level(study, name, level)) for name, level in taught})


def measured_on_tasks(study: Study) -> list[tuple[str, str]]:
    """Teachers that the harness measures, one draw each: (name, its level); ("", "") is the final
    student."""
    names = study.harness.measured(study.teachers) if study.harness else []
    names = [name for name in names if name or study.final]
    first = replica_level(study.grid.replica_numbers()[0])
    return [(name, teacher_level(study, name, first) if name else "") for name in names]


def teachers_for(student: int, sizes: dict[str, int]) -> list[str]:
    """Teachers larger than a student, smallest first; sizes by teacher."""
    return sorted((t for t in sizes if sizes[t] > student), key=lambda t: (sizes[t], t))


def grid_runs(
    grid: Grid,
    sizes: dict[str, int],
    given: dict[str, int] | None = None,
    usual_weight: float | None = None,
) -> list[Run]:
    """Every run of a grid with its control arms, in a fixed order.

    sizes: by teacher. given: sizes of the given students by name. usual_weight: distill.teacher_weight,
    needed if the grid has several.
    """
    runs, given = [], given or {}
    weights = [weight_level(weight, usual_weight) for weight in grid.teacher_weights or ()] or [""]
    main, control = grid.draws(), grid.draws(of_arms=True)
    cut = grid.sizes(given)
    for size in grid.every_size(given):
        budgets = {tokens: grid.ladder(size, tokens, sizes) for tokens in grid.budgets(size)}
        listed = {name for ladder in budgets.values() for name in ladder}
        teachers = [name for name in teachers_for(size, sizes) if name in listed]
        lent = [t for t in teachers if grid.arm_inits is None or t in grid.arm_inits]
        kinds = [kind for kind in ("pruned", "random") if kind in grid.inits and size in cut]
        starts = [RANDOM] if "random" in kinds else []
        if "given" in grid.inits:
            starts += [given_init(name) for name, own in given.items() if own == size]
        # init, teacher, draws, teachers that must be on the ladder of a budget
        pairs = [(pruned_from(t), t, main, {t}) for t in teachers if "pruned" in kinds]
        if "no_teacher" in grid.arms and "pruned" in kinds:
            pairs += [(pruned_from(t), NONE, control, {t}) for t in lent]
        if "random_init" in grid.arms and "random" not in kinds and size in cut:
            pairs += [(RANDOM, t, control, {t} - {NONE}) for t in [*teachers, NONE]]
        pairs += [(start, t, main, {t}) for start in starts for t in teachers]
        if "no_teacher" in grid.arms:
            pairs += [(start, NONE, control, set()) for start in starts]
        elif "random_init" in grid.arms and "random" in kinds:
            pairs.append((RANDOM, NONE, control, set()))
        if "cross_teacher" in grid.arms and "pruned" in kinds:
            pairs += [
                (pruned_from(a), b, control, {a, b}) for a in lent for b in teachers if a != b
            ]
        runs += [
            Run(
                format_count(size),
                init,
                teacher,
                format_count(tokens),
                draw.seed,
                replica_level(draw.replica),
                weight,
            )
            for init, teacher, draws, needed in pairs
            for weight in ([""] if teacher == NONE else weights)
            for tokens, ladder in budgets.items()
            if needed <= {*ladder}
            for draw in draws
        ]
    return runs


def budgets_of(runs: Iterable[Run]) -> dict[Run, list[int]]:
    """Token budgets of runs that differ in nothing else, by the run without its budget."""
    budgets: dict[Run, list[int]] = {}
    for run in runs:
        budgets.setdefault(run._replace(tokens=""), []).append(parse_count(run.tokens))
    return budgets


def next_smaller(run: Run, budgets: dict[Run, list[int]]) -> Run | None:
    """The same run at the largest of its smaller budgets, see `budgets_of`; None without one."""
    tokens = parse_count(run.tokens)
    smaller = [other for other in budgets.get(run._replace(tokens=""), []) if other < tokens]
    return run._replace(tokens=format_count(max(smaller))) if smaller else None


def collect_stage(study: Study) -> CollectStage:
    """What the table of a study is gathered from."""
    trained = [name for name, t in study.teachers.items() if isinstance(t, PretrainedTeacher)]
    return CollectStage(
        root=f"results/{study.study}",
        grid=study.grid,
        teacher_sizes=teacher_sizes(study),
        trained=trained,
        given=given_sizes(study),
        teacher_weight=study.distill.teacher_weight,
        texts=list(study.evaluate.texts),
        tasks=study.tasks_of_law(),
    )


def final_runs(study: Study, teachers: list[str]) -> list[Run]:
    """The runs of the final student from the given teachers; none in a study without one."""
    final = study.final
    if final is None:
        return []
    return [
        Run(
            format_count(final.student),
            final_init(study, teacher),
            teacher,
            format_count(final.tokens),
            draw.seed,
            replica_level(draw.replica),
        )
        for teacher in teachers
        for draw in final.draws(study.grid)
    ]


def first_draws(runs: list[Run]) -> list[Run]:
    """Of runs that differ in their draw alone, the first."""
    first: dict[Run, Run] = {}
    for run in runs:
        first.setdefault(run._replace(seed=0, replica=""), run)
    return list(first.values())


def final_kind(study: Study) -> str:
    """Kind of the final student's init."""
    return study.final.init or study.grid.inits[0]


def final_init(study: Study, teacher: str) -> str:
    """Name of the final student's init in the run with some teacher."""
    match final_kind(study):
        case "random":
            return RANDOM
        case "given":
            sizes = given_sizes(study)
            return given_init(next(n for n in sizes if sizes[n] == study.final.student))
    return pruned_from(teacher)


def shape_teachers(study: Study) -> dict[str, str]:
    """For every student size, the teacher that lends its shape: the smallest large enough."""
    students = study.grid.every_size(given_sizes(study))
    students += [study.final.student] if study.final else []
    return {format_count(size): shape_teacher(study, size) for size in students}


def shape_teacher(study: Study, student: int) -> str:
    """The teacher that lends a student its shape: the smallest large enough, if possible one with the
    students' tokenizer."""
    large_enough = teachers_for(student, teacher_sizes(study))
    same = [name for name in large_enough if not study.teacher_tokenizer(name)]
    return (same or large_enough)[0]
