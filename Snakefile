"""
The study as a graph of files: text -> teachers -> students -> law -> final student -> report.

`capgap run` (or `make`) runs it for config.yaml; `--configfile other.yaml` replaces the study.
"""


include: "rules/common.smk"


container: STUDY.plan.container


include: "rules/text.smk"
include: "rules/tokenizers.smk"
include: "rules/teachers.smk"
include: "rules/rounds.smk"
include: "rules/students.smk"
include: "rules/law.smk"
include: "rules/final.smk"
include: "rules/harness.smk"
include: "rules/metrics.smk"


# On a cluster these run beside Snakemake, because they take seconds and a job costs half a minute.
localrules:
    collect_runs,
    choose_teacher,
    compare_final,
    write_metrics,
    write_report,


# Every result is named, because Snakemake counts a job whose input failed as done and would treat a
# stale result behind it as up to date.


rule all:
    """The whole study."""
    default_target: True
    input:
        results_of_study(),
        final_paths(paths.TEACHER_IMPORTANCE),
        final_targets if STUDY.final and CACHED else [],
        final_rounds,
        final_paths(paths.INIT_MODEL),
        final_paths(paths.RUN_MODEL),
        final_paths(paths.RUN_CURVE),
        final_paths(paths.RUN_TRAIN),
        final_paths(paths.RUN_METRICS),


rule teachers:
    """All teachers, trained or fetched, and measured."""
    input:
        teachers_of_study(paths.TEACHER_METRICS),


rule students:
    """All students of the grid, trained and measured."""
    input:
        runs_of_grid(paths.RUN_METRICS),


rule law:
    """The table of runs and the law fitted on it."""
    input:
        of_study(paths.LAW),
