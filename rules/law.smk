"""
Gather the runs, fit the law, and choose a teacher for a student size outside the grid.

IN   results/{study}/students/**/{train.json,metrics.json,curve.csv,texts/*.json,harness.json}
     results/{study}/teachers/*/{metrics.json,train.json,curve.csv}
OUT  results/{study}/law/{runs.csv,curves.csv,law.json,choice.json}
"""


rule collect_runs:
    """Gather all runs of the grid into one table, and their learning curves into another."""
    input:
        runs_of_grid(paths.RUN_TRAIN),
        runs_of_grid(paths.RUN_METRICS),
        runs_of_grid(paths.RUN_CURVE),
        runs_on_texts(),
        teachers_on_texts(),
        runs_on_tasks(),
        teachers_of_study(paths.TEACHER_METRICS),
        trained_teachers(paths.TEACHER_TRAIN),
        trained_teachers(paths.TEACHER_CURVE),
    output:
        runs=paths.RUNS_TABLE,
        curves=paths.CURVES_TABLE,
    log:
        paths.log("collect_runs", paths.ROOT),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("collect_runs"),
        runtime=NEEDS.runtime("collect_runs"),
    params:
        spec=spec("collect", run_grid.collect_stage(STUDY)),
    shell:
        r"""
        exec python -m capgap.stages.collect --spec {params.spec:q} \
            --out {output.runs:q} --curves-out {output.curves:q} >{log:q} 2>&1
        """


rule fit_law:
    """Fit the law T* ~ S^a D^b and its rivals to the table of runs."""
    input:
        paths.RUNS_TABLE,
    output:
        paths.LAW,
    log:
        paths.log("fit_law", paths.ROOT),
    benchmark:
        paths.timing("fit_law", paths.ROOT)
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("fit_law"),
        runtime=NEEDS.runtime("fit_law"),
    params:
        spec=spec("fit", STUDY.law_stage()),
    shell:
        r"""
        exec python -m capgap.stages.fit \
            --runs {input:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


checkpoint choose_teacher:
    """Choose the final student's teacher with the law."""
    input:
        law=paths.LAW,
        runs=paths.RUNS_TABLE,
    output:
        paths.CHOICE,
    log:
        paths.log("choose_teacher", paths.ROOT),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("choose_teacher"),
        runtime=NEEDS.runtime("choose_teacher"),
    params:
        spec=spec("choose"),
        asked=choice_options,
    shell:
        r"""
        exec python -m capgap.stages.choose \
            --law {input.law:q} --runs {input.runs:q} {params.asked} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """
