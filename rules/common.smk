"""
The study's settings and the helpers that the rules share; no rules.
"""

from pathlib import Path

from snakemake.exceptions import WorkflowError

from capgap.config import run_grid
from capgap.records import paths
from capgap.config import PretrainedTeacher, TeacherTokenizer
from capgap.cost.requests import Requests
from capgap.cost.saved_work import saved_work, wanted_of
from capgap.config.counts import parse_count
from capgap.errors import CapgapError
from capgap.data.packages import check_lm_eval
from capgap.law.answers.answer_records import Choice
from capgap.cost.teacher_configs import open_study
from capgap.workflow import job_host, launch, rule_params

rule_params.prepare_environment()

CORES_PER_GPU = None
try:
    if workflow.is_main_process:
        # Without --configfile the study is config.yaml; values of --config replace top-level keys.
        STUDY = open_study(config if workflow.configfiles else Path("config.yaml"))
        rule_params.hand_down(STUDY)
        if workflow.local_exec and "gpu" in workflow.global_resources:
            launch.share_out(gpus := workflow.global_resources["gpu"].value)
            CORES_PER_GPU = workflow.cores // max(1, gpus)
    else:  # a job on a cluster parses this file again
        STUDY = rule_params.handed_down()
except CapgapError as error:
    raise WorkflowError(str(error))

NEEDS = Requests(STUDY, CORES_PER_GPU)  # memory, time and devices of every job
OWN_TEXTS = rule_params.own_texts(workflow)
RESUMABLE = NEEDS.on_slurm(OWN_TEXTS)
TRAINING = NEEDS.on_slurm_nodes(OWN_TEXTS)
SIZES = run_grid.teacher_sizes(STUDY)
RUNS = run_grid.runs_of(STUDY)
BUDGETS = run_grid.budgets_of(RUNS)
TRUNK = [paths.RUN_TRUNK] if STUDY.distill.schedule == "wsd" else []
TEXT_THREADS = 4  # of the jobs that read and pack the text, fewer on a machine with fewer cores
SCORED = run_grid.scored_teachers(RUNS)
CACHED = run_grid.teaching(STUDY, RUNS) if STUDY.distill.teacher_targets != "online" else []
GIVEN = run_grid.student_draws(STUDY)  # given students that are not teachers
PRETRAINED = [n for n, t in STUDY.models.items() if isinstance(t, PretrainedTeacher)]
SOFTWARE = workflow.deployment_settings.deployment_method  # conda or apptainer; empty for this one
GIVEN_TRAINED = [draw for draw in GIVEN if draw[0] in PRETRAINED]
FETCHED = [n for n in STUDY.models if n not in PRETRAINED]


wildcard_constraints:
    study=STUDY.study,
    teacher=r"[a-z0-9][a-z0-9.-]*",
    student=r"[0-9.]+[kMBT]?",
    tokens=r"[0-9.]+[kMBT]?",
    init=r"random|(pruned|given)-[a-z0-9][a-z0-9.-]*",
    seed=r"\d+",
    number=r"\d+",
    text=r"[a-z0-9][a-z0-9_-]*",
    weight=r"(weight-[0-9.e-]+/)?",
    replica=r"(replica-\d+/)?",


def one_of(names):
    """A wildcard constraint that matches the given names only."""
    return "|".join(n.replace(".", r"\.") for n in names) or "(?!)"


def of_study(path):
    """A path of this study."""
    return path.format(study=STUDY.study)


def of_teachers(path, draws):
    """One path for every draw of a teacher."""
    return [path.format(study=STUDY.study, teacher=name, replica=level) for name, level in draws]


def teachers_of_study(path):
    """One path for every teacher and draw."""
    return of_teachers(path, run_grid.teacher_draws(STUDY))


def trained_teachers(path):
    """One path for every draw of the teachers that are trained here."""
    return of_teachers(path, [d for d in run_grid.teacher_draws(STUDY) if d[0] in PRETRAINED])


def teacher_path(path, teacher, wildcards):
    """A path of the teacher that the runs of a replica use."""
    level = run_grid.teacher_level(STUDY, teacher, wildcards.replica)
    return path.format(study=STUDY.study, teacher=teacher, replica=level)


def runs_of_grid(path):
    """One path for every run of the grid."""
    every = [path.format(study=STUDY.study, **run._asdict()) for run in RUNS]
    return list(dict.fromkeys(every))


def rounds_of(runs):
    """What lies between two cuts of the inits of runs; nothing with one round."""
    kinds = (
        paths.ROUND_CUT,
        paths.ROUND_MODEL,
        paths.ROUND_CURVE,
        paths.ROUND_TRAIN,
        paths.ROUND_IMPORTANCE,
    )
    places = run_grid.rounds_of(STUDY, runs)
    return [kind.format(study=STUDY.study, **p._asdict()) for p in places for kind in kinds]


def texts_of_study(path):
    """One path for every further text."""
    return [path.format(study=STUDY.study, text=name) for name in STUDY.evaluate.texts]


def runs_on_texts():
    """The results of every run of the grid on every further text."""
    return [
        paths.RUN_ON_TEXT.format(study=STUDY.study, text=name, **run._asdict())
        for name in STUDY.evaluate.texts
        for run in RUNS
    ]


def teachers_on_texts():
    """The results of every draw of a teacher on every further text."""
    return [
        paths.TEACHER_ON_TEXT.format(study=STUDY.study, text=text, teacher=name, replica=level)
        for text in STUDY.evaluate.texts
        for name, level in run_grid.teacher_draws(STUDY)
    ]


def runs_on_tasks():
    """The scores of every run of the grid on the tasks of the law; empty without any."""
    return runs_of_grid(paths.RUN_HARNESS) if STUDY.student_harness() else []


def text_settings(wildcards):
    """The source of a further text."""
    return STUDY.evaluate.texts[wildcards.text]


def harness_results():
    """Task scores of the models that the study's harness section names; empty without one."""
    return [paths.harness(STUDY.study, *draw) for draw in run_grid.measured_on_tasks(STUDY)]


def harness_files():
    """The files of the study's own tasks."""
    folder = (
        Path(STUDY.harness.task_folder) if STUDY.harness and STUDY.harness.task_folder else None
    )
    if folder and not folder.is_dir():
        raise WorkflowError(f"harness.task_folder: {folder} is not a folder; check the path")
    return sorted(str(p) for p in folder.rglob("*.*") if p.is_file()) if folder else []


def results_of_study():
    """Every result whose path is known before the law has chosen a teacher."""
    final = [paths.CHOICE, paths.FINAL, paths.SAMPLES] if STUDY.final else []
    return [
        *map(of_study, [paths.CORPUS, paths.TOKENIZER, paths.TOKENS]),
        *[
            path.format(study=STUDY.study, tokenizer=name)
            for name in STUDY.teacher_tokenizers
            for path in (paths.OWN_TOKENIZER, paths.OWN_TOKENS)
        ],
        *teachers_of_study(paths.TEACHER_MODEL),
        *of_teachers(paths.TEACHER_MODEL, GIVEN),
        *of_teachers(paths.TEACHER_CURVE, GIVEN_TRAINED),
        *of_teachers(paths.TEACHER_TRAIN, GIVEN_TRAINED),
        *teachers_of_study(paths.TEACHER_METRICS),
        *of_teachers(paths.TEACHER_IMPORTANCE, SCORED),
        *of_teachers(paths.TEACHER_TARGETS, CACHED),
        *trained_teachers(paths.TEACHER_CURVE),
        *trained_teachers(paths.TEACHER_TRAIN),
        *[
            path
            for kind in (
                paths.INIT_MODEL,
                paths.RUN_MODEL,
                paths.RUN_CURVE,
                paths.RUN_TRAIN,
                *TRUNK,
            )
            for path in runs_of_grid(kind)
        ],
        *rounds_of(RUNS),
        *runs_of_grid(paths.RUN_METRICS),
        *texts_of_study(paths.TEXT),
        *texts_of_study(paths.TEXT_TOKENS),
        *runs_on_texts(),
        *teachers_on_texts(),
        *runs_on_tasks(),
        *map(of_study, [paths.RUNS_TABLE, paths.CURVES_TABLE, paths.LAW, *final]),
        *harness_results(),
        *map(of_study, [paths.STUDY_METRICS, paths.REPORT]),
    ]


def spec(stage, settings=None):
    """A rule's only parameter, with its settings and the digests of its source and command.

    settings: a section, or a function of the wildcards that returns one.
    """
    rules_of_this = []

    def given(wildcards):
        if not rules_of_this:
            rules_of_this.extend(r.name for r in workflow.rules if r.params.get("spec") is given)
        section = settings(wildcards) if callable(settings) else settings
        return rule_params.spec(stage, section, rules_of_this[0])

    return given


def study_settings(wildcards):
    """All settings of the study as JSON, for the report to show."""
    return STUDY.model_dump_json(exclude_none=True, exclude=STUDY.watching())


def pretrain_settings(wildcards):
    """The settings of one teacher's training."""
    replica = run_grid.replica_number(wildcards.replica)
    return STUDY.pretrain_stage(wildcards.teacher, replica)


def score_settings(wildcards):
    """The settings of scoring one teacher."""
    replica = run_grid.replica_number(wildcards.replica)
    return STUDY.score_stage(replica)


def distill_settings(wildcards):
    """The settings of one distillation."""
    weight = run_grid.weight_of(wildcards.weight, STUDY.distill.teacher_weight)
    return STUDY.distill_stage(weight)


def teacher_settings(wildcards):
    """The settings of one teacher or given student."""
    return STUDY.models[wildcards.teacher]


def trim_text(wildcards):
    """The corpus if the fetched teacher's vocabulary is trimmed to it, otherwise nothing."""
    if STUDY.models[wildcards.teacher].trim_vocabulary:
        return paths.CORPUS.format(study=wildcards.study)
    return []


def tokenizer_source(wildcards):
    """The corpus to train a tokenizer on, or the teacher to take it from."""
    tokenizer = STUDY.tokenizer
    if "tokenizer" in wildcards.keys():
        tokenizer = STUDY.teacher_tokenizers[wildcards.tokenizer]
    if isinstance(tokenizer, TeacherTokenizer):
        return paths.TEACHER_MODEL.format(
            study=wildcards.study, teacher=tokenizer.teacher, replica=""
        )
    return paths.CORPUS.format(study=wildcards.study)


def own_tokenizer_settings(wildcards):
    """The settings of the tokenizer of some teachers."""
    return STUDY.teacher_tokenizers[wildcards.tokenizer].source_settings()


def of_tokenizer(students, own):
    """An input function: one path for teachers with the students' tokenizer, another for others."""

    def chosen(wildcards):
        name = STUDY.teacher_tokenizer(wildcards.teacher)
        return (own if name else students).format(study=wildcards.study, tokenizer=name)

    return chosen


teachers_tokens = of_tokenizer(paths.TOKENS, paths.OWN_TOKENS)
teachers_tokenizer = of_tokenizer(paths.TOKENIZER, paths.OWN_TOKENIZER)


def run_teacher_tokens(wildcards):
    """The text in the tokens of a run's teacher; nothing if they are the student's."""
    return teachers_tokens(wildcards) if STUDY.teacher_tokenizer(wildcards.teacher) else []


def run_teacher(wildcards):
    """The teacher of a run; nothing for the control without a teacher."""
    if wildcards.teacher == run_grid.NONE:
        return []
    return own_teacher(wildcards)


def own_teacher(wildcards):
    """The teacher that is named in a job's path."""
    return teacher_path(paths.TEACHER_MODEL, wildcards.teacher, wildcards)


def shorter_trunk(wildcards):
    """The end of the stable phase (trunk) of the next smaller budget, from which a run continues.

    Nothing for the smallest budget and for schedules other than wsd.
    """
    values = {key: wildcards[key] for key in run_grid.Run._fields}
    run = run_grid.Run(**values | {"seed": int(wildcards.seed)})
    shorter = run_grid.next_smaller(run, BUDGETS) if TRUNK else None
    if shorter is None:
        return []
    return paths.RUN_TRUNK.format(study=wildcards.study, **shorter._asdict())


def run_targets(wildcards):
    """The cached targets of a run's teacher; nothing without a teacher or if it runs online."""
    if wildcards.teacher == run_grid.NONE or STUDY.distill.teacher_targets == "online":
        return []
    return teacher_path(paths.TEACHER_TARGETS, wildcards.teacher, wildcards)


def targets_stage():
    """The settings of caching teachers' targets; None if teachers run online."""
    return None if STUDY.distill.teacher_targets == "online" else STUDY.distill.targets_stage()


def shape_model(wildcards):
    """The teacher whose layout a random init shares, which is the smallest that is large enough."""
    teacher = run_grid.shape_teacher(STUDY, parse_count(wildcards.student))
    return teacher_path(paths.TEACHER_MODEL, teacher, wildcards)


def students_tokenizer(wildcards):
    """The students' tokenizer, if the teacher that lends the shape has another one."""
    teacher = run_grid.shape_teacher(STUDY, parse_count(wildcards.student))
    own = STUDY.teacher_tokenizer(teacher)
    return paths.TOKENIZER.format(study=wildcards.study) if own else []


def shared_shape(wildcards):
    """The teacher that gives a pruned init its shape; nothing if it is the model that is cut."""
    lender = shape_model(wildcards) if STUDY.prune.one_shape else own_teacher(wildcards)
    return lender if lender != model_to_cut(wildcards) else []


def round_before(wildcards):
    """The place of the round whose model is cut on; None for the first cut of a teacher."""
    number = int(wildcards.get("number", STUDY.prune.rounds)) - 1
    init = run_grid.pruned_from(wildcards.teacher)
    return run_grid.Round(wildcards.student, init, number, wildcards.replica) if number else None


def model_to_cut(wildcards):
    """The teacher that an init is pruned from, or the model that earlier rounds left of it."""
    before = round_before(wildcards)
    if before is None:
        return own_teacher(wildcards)
    return paths.ROUND_MODEL.format(study=STUDY.study, **before._asdict())


def scores_to_cut_by(wildcards):
    """The scores of the model that is cut."""
    before = round_before(wildcards)
    if before is None:
        return paths.TEACHER_IMPORTANCE.format(
            study=STUDY.study, replica=wildcards.replica, teacher=wildcards.teacher
        )
    return paths.ROUND_IMPORTANCE.format(study=STUDY.study, **before._asdict())


def round_folder(wildcards):
    """The folder of an init between two cuts."""
    init = run_grid.pruned_from(wildcards.teacher)
    return paths.ROUND_DIR.replace("{init}", init).format(**dict(wildcards.items()))


def round_options(wildcards):
    """Tokens of the training between two cuts, and the seed of their order."""
    replica = run_grid.replica_number(wildcards.replica)
    seed = run_grid.round_seed(STUDY, int(wildcards.number), replica)
    return f"--tokens {STUDY.prune.round_tokens} --seed {seed}"


def refit_tokens(wildcards):
    """The tokens on which a pruned init is refitted; nothing without a refit."""
    return [] if STUDY.prune.refit == "none" else paths.TOKENS.format(study=wildcards.study)


def prune_options(wildcards):
    """A student's size in parameters without embeddings, and the seed of the scores.

    With several rounds also how many cuts are left, and what the init is called.
    """
    seed, rounds = (
        STUDY.score_stage(run_grid.replica_number(wildcards.replica)).seed,
        STUDY.prune.rounds,
    )
    asked = f"--params {parse_count(wildcards.student)} --scored-with {seed}"
    if rounds == 1:
        return asked
    left = rounds + 1 - int(wildcards.get("number", rounds))
    return f"{asked} --rounds-left {left} --init {run_grid.pruned_from(wildcards.teacher)}"


def given_model(wildcards):
    """The model that a given student is."""
    return teacher_path(paths.TEACHER_MODEL, wildcards.given, wildcards)


def random_init_options(wildcards):
    """A student's size in parameters without embeddings, and the seed of its random weights."""
    seed = run_grid.replica_number(wildcards.replica) or 0
    return f"--params {parse_count(wildcards.student)} --seed {seed}"


def chosen_runs():
    """The final runs, of the law's choice and its alternatives."""
    choice = Choice.read(checkpoints.choose_teacher.get(study=STUDY.study).output[0])
    return run_grid.final_runs(STUDY, choice.teachers())


def final_paths(path):
    """An input function with one path for every final run; nothing in a study without them."""

    def chosen(wildcards):
        return [path.format(study=STUDY.study, **run._asdict()) for run in chosen_runs()]

    return chosen if STUDY.final else []


def final_rounds(wildcards):
    """What lies between two cuts of the final students' inits."""
    return rounds_of(chosen_runs()) if STUDY.final and STUDY.prune.rounds > 1 else []


def final_teachers(wildcards):
    """Metrics of the teachers of the final runs."""
    return of_teachers(paths.TEACHER_METRICS, run_grid.teaching(STUDY, chosen_runs()))


def final_targets(wildcards):
    """Cached targets of the teachers of the final runs."""
    return of_teachers(paths.TEACHER_TARGETS, run_grid.teaching(STUDY, chosen_runs()))


def sampled_models(wildcards):
    """The final student from each of its teachers, of its first draw, and the chosen teacher."""
    choice = Choice.read(checkpoints.choose_teacher.get(study=STUDY.study).output[0])
    runs = run_grid.first_draws(run_grid.final_runs(STUDY, choice.teachers()))
    students = [paths.RUN_MODEL.format(study=STUDY.study, **run._asdict()) for run in runs]
    chosen = of_teachers(paths.TEACHER_MODEL, run_grid.teaching(STUDY, runs[:1]))
    return students + chosen * STUDY.sample.teacher


def final_result(path):
    """A result about the final student; nothing in a study without one."""
    return of_study(path) if STUDY.final else []


def choice_options(wildcards):
    """The student and budget to choose for, as options so that the records name the values."""
    final = STUDY.final
    asked = final and f"--student {final.student} --tokens {final.tokens}"
    return f"{asked} --init {run_grid.final_kind(STUDY)}" if final else asked


try:
    if workflow.is_main_process:  # not in a job that parses this file again
        NEEDS.check_sizes()
        rule_params.reconcile(of_study(paths.ROOT), results_of_study())
except CapgapError as error:
    raise WorkflowError(str(error))


onstart:  # a dry run does not stop here; it only prints these problems
    try:
        if workflow.is_main_process:
            rule_params.check_executor(STUDY, workflow.executor_plugin.name)
        NEEDS.check_fit()
        rule_params.check_inputs(workflow.dag.needrun_jobs())
        if STUDY.harness:
            check_lm_eval()
        if STUDY.final is None:
            rule_params.forget_final(STUDY.study)
        if workflow.is_main_process:
            note = saved_work(STUDY, wanted_of(workflow.dag.needrun_jobs()))
            if note:
                logger.warning(f"note: {note}")
        here = workflow.is_main_process and workflow.local_exec  # and no job of a cluster
        if here and not NEEDS.devices and not SOFTWARE and job_host.possible():
            job_host.start()
    except CapgapError as error:
        raise WorkflowError(str(error))
