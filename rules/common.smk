"""
The study's settings and the helpers that the rules share; no rules.
"""

from pathlib import Path

from snakemake.exceptions import WorkflowError

from capgap.config import run_grid
from capgap.records import paths
from capgap.config import CollectStage, PretrainedTeacher, TeacherTokenizer
from capgap.cost.requests import Requests
from capgap.config.counts import parse_count
from capgap.errors import CapgapError
from capgap.data.packages import check_lm_eval
from capgap.law.law_record import Choice
from capgap.config.study_file import load_study
from capgap.workflow import launch, rule_params

rule_params.prepare_environment()

try:
    if workflow.is_main_process:
        # Without --configfile the study is config.yaml; values of --config replace top-level keys.
        STUDY = load_study(config if workflow.configfiles else Path("config.yaml"))
        rule_params.hand_down(STUDY)
        if workflow.local_exec and "gpu" in workflow.global_resources:
            launch.share_out(workflow.global_resources["gpu"].value)
    else:  # a job on a cluster parses this file again
        STUDY = rule_params.handed_down()
except CapgapError as error:
    raise WorkflowError(str(error))

NEEDS = Requests(STUDY)  # memory, time and devices of every job
SIZES = run_grid.teacher_sizes(STUDY)
RUNS = run_grid.grid_runs(STUDY.grid, SIZES)
BUDGETS = run_grid.budgets_of(RUNS)
TRUNK = [paths.RUN_TRUNK] if STUDY.distill.schedule == "wsd" else []
SCORED = sorted({run.init.removeprefix("pruned-") for run in RUNS} - {run_grid.RANDOM})
CACHED = sorted({run.teacher for run in RUNS} - {run_grid.NONE})
if STUDY.distill.teacher_targets == "online":
    CACHED = []
PRETRAINED = [n for n, t in STUDY.teachers.items() if isinstance(t, PretrainedTeacher)]
FETCHED = [n for n in STUDY.teachers if n not in PRETRAINED]


wildcard_constraints:
    study=STUDY.study,
    teacher=r"[a-z0-9][a-z0-9.-]*",
    student=r"[0-9.]+[kMBT]?",
    tokens=r"[0-9.]+[kMBT]?",
    init=r"random|pruned-[a-z0-9][a-z0-9.-]*",
    seed=r"\d+",


def one_of(names):
    """A wildcard constraint that admits the given names and nothing else."""
    return "|".join(n.replace(".", r"\.") for n in names) or "(?!)"


def of_study(path):
    """A path of this study."""
    return path.format(study=STUDY.study)


def teachers_of_study(path):
    """One path for every teacher."""
    return [path.format(study=STUDY.study, teacher=name) for name in STUDY.teachers]


def runs_of_grid(path):
    """One path for every run of the grid."""
    every = [path.format(study=STUDY.study, **run._asdict()) for run in RUNS]
    return list(dict.fromkeys(every))


def harness_results():
    """What lm-evaluation-harness says of the models that the study names; nothing without it."""
    names = STUDY.harness.measured(STUDY.teachers) if STUDY.harness else []
    return [paths.harness(STUDY.study, name) for name in names]


def harness_files():
    """The files of the study's own tasks."""
    folder = (
        Path(STUDY.harness.task_folder) if STUDY.harness and STUDY.harness.task_folder else None
    )
    if folder and not folder.is_dir():
        raise WorkflowError(f"harness.task_folder: {folder} is no folder; check the path")
    return sorted(str(p) for p in folder.rglob("*.*") if p.is_file()) if folder else []


def results_of_study():
    """Every result that is known before the law has chosen."""
    return [
        *map(of_study, [paths.CORPUS, paths.TOKENIZER, paths.TOKENS]),
        *teachers_of_study(paths.TEACHER_MODEL),
        *teachers_of_study(paths.TEACHER_METRICS),
        *[of_study(paths.TEACHER_IMPORTANCE.replace("{teacher}", t)) for t in SCORED],
        *[of_study(paths.TEACHER_TARGETS.replace("{teacher}", t)) for t in CACHED],
        *[
            path
            for kind in (paths.INIT_MODEL, paths.RUN_MODEL, *TRUNK)
            for path in runs_of_grid(kind)
        ],
        *runs_of_grid(paths.RUN_METRICS),
        *map(of_study, [paths.RUNS_TABLE, paths.LAW, paths.CHOICE]),
        *harness_results(),
        *map(of_study, [paths.FINAL, paths.STUDY_METRICS, paths.REPORT]),
    ]


def spec(stage, settings=None):
    """A rule's one parameter: its settings and the digest of the source it runs."""
    text = rule_params.spec(stage, settings)

    def given(wildcards):
        return text

    return given


def study_settings(wildcards):
    """All settings of the study as JSON, for the report to show."""
    return STUDY.model_dump_json(exclude_none=True)


def pretrain_spec(wildcards):
    """The parameter of one teacher's training."""
    return rule_params.spec("pretrain", STUDY.pretrain_stage(wildcards.teacher))


def fetch_spec(wildcards):
    """The parameter of one teacher's arrival."""
    return rule_params.spec("fetch", STUDY.teachers[wildcards.teacher])


def trim_text(wildcards):
    """The corpus, for a fetched teacher whose vocabulary is trimmed to it; nothing for others."""
    if STUDY.teachers[wildcards.teacher].trim_vocabulary:
        return paths.CORPUS.format(study=wildcards.study)
    return []


def tokenizer_source(wildcards):
    """The corpus to train a tokenizer on, or the teacher to take it from."""
    if isinstance(STUDY.tokenizer, TeacherTokenizer):
        return paths.TEACHER_MODEL.format(study=wildcards.study, teacher=STUDY.tokenizer.teacher)
    return paths.CORPUS.format(study=wildcards.study)


def run_teacher(wildcards):
    """The teacher of a run; nothing for the arm without one."""
    if wildcards.teacher == run_grid.NONE:
        return []
    return paths.TEACHER_MODEL.format(study=wildcards.study, teacher=wildcards.teacher)


def shorter_trunk(wildcards):
    """The trunk that a run goes on from; nothing for the smallest budget and other schedules."""
    values = {key: wildcards[key] for key in run_grid.Run._fields}
    run = run_grid.Run(**values | {"seed": int(wildcards.seed)})
    shorter = run_grid.next_smaller(run, BUDGETS) if TRUNK else None
    if shorter is None:
        return []
    return paths.RUN_TRUNK.format(study=wildcards.study, **shorter._asdict())


def run_targets(wildcards):
    """The cached targets of a run's teacher; nothing where there is none or it is online."""
    if wildcards.teacher == run_grid.NONE or STUDY.distill.teacher_targets == "online":
        return []
    return paths.TEACHER_TARGETS.format(study=wildcards.study, teacher=wildcards.teacher)


def targets_stage():
    """What is kept of the teachers' targets; nothing where it is online."""
    return None if STUDY.distill.teacher_targets == "online" else STUDY.distill.targets_stage()


def shape_model(wildcards):
    """The teacher whose layout a random start shares: the smallest that is large enough."""
    size = parse_count(wildcards.student)
    teacher = run_grid.teachers_for(size, SIZES)[0]
    return paths.TEACHER_MODEL.format(study=wildcards.study, teacher=teacher)


def shared_shape(wildcards):
    """The teacher that lends a start its shape; nothing where the start's own teacher does."""
    lender = shape_model(wildcards)
    own = paths.TEACHER_MODEL.format(study=wildcards.study, teacher=wildcards.teacher)
    return lender if STUDY.prune.one_shape and lender != own else []


def student_params(wildcards):
    """A student's size in parameters without embeddings."""
    return parse_count(wildcards.student)


def final_paths(path):
    """An input function: one path for every final run that the law's choice asks for."""

    def chosen(wildcards):
        choice = Choice.read(checkpoints.choose_teacher.get(study=STUDY.study).output[0])
        runs = run_grid.final_runs(STUDY.final, choice.teachers())
        return [path.format(study=STUDY.study, **run._asdict()) for run in runs]

    return chosen


def final_teachers(wildcards):
    """Metrics of the teachers of the final runs."""
    choice = Choice.read(checkpoints.choose_teacher.get(study=STUDY.study).output[0])
    return [
        paths.TEACHER_METRICS.format(study=STUDY.study, teacher=name) for name in choice.teachers()
    ]


def choice_options(wildcards):
    """What the law is asked, as options; numbers alone would have no name in the records."""
    return f"--student {STUDY.final.student} --tokens {STUDY.final.tokens}"


try:
    if workflow.is_main_process:  # not in a job that parses this file again
        NEEDS.check_sizes()
        rule_params.reconcile(of_study(paths.ROOT), results_of_study())
except CapgapError as error:
    raise WorkflowError(str(error))


onstart:  # not for a dry run, which says it and goes on
    try:
        NEEDS.check_fit()
        rule_params.check_inputs(workflow.dag.needrun_jobs())
        if STUDY.harness:
            check_lm_eval()
    except CapgapError as error:
        raise WorkflowError(str(error))
