"""
Measure teachers and the final student on tasks of lm-evaluation-harness, if the study has a section
`harness`. Only the report depends on it.

IN   results/{study}/teachers/{teacher}/model/  results/{study}/final/model/
OUT  results/{study}/teachers/{teacher}/harness.json  results/{study}/final/harness.json
"""


rule harness_teacher:
    """Measure one teacher on the tasks."""
    input:
        model=paths.TEACHER_MODEL,
        tasks=harness_files(),
    output:
        paths.TEACHER_HARNESS,
    log:
        paths.log("harness_teacher", paths.TEACHER_DIR),
    benchmark:
        paths.timing("harness_teacher", paths.TEACHER_DIR)
    conda:
        "../envs/harness.yaml"
    threads: NEEDS.cores
    resources:
        mem_mb=NEEDS.mem_mb("harness_teacher"),
        runtime=NEEDS.runtime("harness_teacher"),
        gpu=NEEDS.devices,
    params:
        spec=spec("harness", STUDY.harness and STUDY.harness.stage()),
    shell:
        r"""
        exec python -m capgap.stages.harness \
            --model {input.model:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule harness_final:
    """Measure the final student on the tasks."""
    input:
        model=paths.FINAL_MODEL,
        tasks=harness_files(),
    output:
        paths.FINAL_HARNESS,
    log:
        paths.log("harness_final", paths.ROOT),
    benchmark:
        paths.timing("harness_final", paths.ROOT)
    conda:
        "../envs/harness.yaml"
    threads: NEEDS.cores
    resources:
        mem_mb=NEEDS.mem_mb("harness_final"),
        runtime=NEEDS.runtime("harness_final"),
        gpu=NEEDS.devices,
    params:
        spec=spec("harness", STUDY.harness and STUDY.harness.stage()),
    shell:
        r"""
        exec python -m capgap.stages.harness \
            --model {input.model:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """
