"""
The law-guided final student, its alternatives, and the report. The runs themselves are ordinary
runs of `distill_student`, at the final student's size and budget.

IN   results/{study}/law/  results/{study}/students/{final student}/**
OUT  results/{study}/final/{final.json,model/,samples.json}  results/{study}/metrics.json
     results/{study}/report/
"""


rule compare_final:
    """Compare the law's choice with its alternatives and publish the final student."""
    input:
        choice=paths.CHOICE,
        trained=final_paths(paths.RUN_TRAIN),
        metrics=final_paths(paths.RUN_METRICS),
        models=final_paths(paths.RUN_MODEL),
        teachers=final_teachers,
    output:
        final=paths.FINAL,
        model=paths.FINAL_MODEL,
    log:
        paths.log("compare_final", paths.ROOT),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("compare_final"),
        runtime=NEEDS.runtime("compare_final"),
    params:
        spec=spec("compare"),
    shell:
        r"""
        exec python -m capgap.stages.compare \
            --choice {input.choice:q} --trained {input.trained:q} --teachers {input.teachers:q} \
            --spec {params.spec:q} --out {output.final:q} --model-out {output.model:q} \
            >{log:q} 2>&1
        """


rule sample_final:
    """Continue held-out text with the final students and the chosen teacher."""
    input:
        models=sampled_models,
        corpus=paths.CORPUS,
        tokens=paths.TOKENS,
    output:
        paths.SAMPLES,
    log:
        paths.log("sample_final", paths.ROOT),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.cores
    resources:
        mem_mb=NEEDS.mem_mb("sample_final"),
        runtime=NEEDS.runtime("sample_final"),
        gpu=NEEDS.devices,
    params:
        timing=paths.timing("sample_final", paths.ROOT),
        spec=spec("sample", STUDY.sample.stage()),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} {params.timing:q} capgap.stages.sample \
            --models {input.models:q} --corpus {input.corpus:q} --token-streams {input.tokens:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule write_metrics:
    """Write the few numbers by which revisions are compared into one flat file."""
    input:
        law=paths.LAW,
        final=final_result(paths.FINAL),
    output:
        paths.STUDY_METRICS,
    log:
        paths.log("write_metrics", paths.ROOT),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("write_metrics"),
        runtime=NEEDS.runtime("write_metrics"),
    params:
        spec=spec("metrics"),
    shell:
        r"""
        exec python -m capgap.stages.metrics \
            --law {input.law:q} --final {input.final:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule write_report:
    """Write the report and its figures."""
    input:
        runs=paths.RUNS_TABLE,
        curves=paths.CURVES_TABLE,
        law=paths.LAW,
        final=final_result(paths.FINAL),
        samples=final_result(paths.SAMPLES),
        teachers=teachers_of_study(paths.TEACHER_METRICS),
        harness=harness_results(),
    output:
        paths.REPORT,
    log:
        paths.log("write_report", paths.ROOT),
    benchmark:
        paths.timing("write_report", paths.ROOT)
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("write_report"),
        runtime=NEEDS.runtime("write_report"),
    params:
        spec=spec("report"),
        settings=study_settings,
    shell:
        r"""
        exec python -m capgap.stages.report \
            --runs {input.runs:q} --curves {input.curves:q} --law {input.law:q} \
            --final {input.final:q} --samples {input.samples:q} \
            --teachers {input.teachers:q} --harness {input.harness:q} \
            --study-name {wildcards.study:q} \
            --study-spec {params.settings:q} --spec {params.spec:q} --out {output:q} \
            >{log:q} 2>&1
        """
