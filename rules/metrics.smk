"""
Measure models on further texts (evaluate.texts), and the students of the grid on the tasks that the law
is fitted on.

IN   results/{study}/{tokenizer/,{replica}teachers/{teacher}/model/,{replica}students/**/model/}
OUT  results/{study}/texts/{text}/{corpus/,tokens/}
     results/{study}/{replica}teachers/{teacher}/texts/{text}.json
     results/{study}/{replica}students/**/{texts/{text}.json,harness.json}
"""


rule prepare_text:
    """Read a further text."""
    output:
        paths.TEXT,
    log:
        paths.log("prepare_text", paths.TEXT_DIR),
    benchmark:
        paths.timing("prepare_text", paths.TEXT_DIR)
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("prepare_text"),
        runtime=NEEDS.runtime("prepare_text"),
    params:
        spec=spec("text", text_settings),
    shell:
        r"""
        exec python -m capgap.stages.text \
            --text {wildcards.text:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule pack_text:
    """Turn a further text into a flat token stream."""
    input:
        corpus=paths.TEXT,
        tokenizer=paths.TOKENIZER,
    output:
        paths.TEXT_TOKENS,
    log:
        paths.log("pack_text", paths.TEXT_DIR),
    benchmark:
        paths.timing("pack_text", paths.TEXT_DIR)
    conda:
        "../envs/train.yaml"
    threads: TEXT_THREADS
    resources:
        mem_mb=NEEDS.mem_mb("pack_text"),
        runtime=NEEDS.runtime("pack_text"),
    params:
        spec=spec("pack"),
    shell:
        r"""
        exec python -m capgap.stages.pack \
            --corpus {input.corpus:q} --tokenizer {input.tokenizer:q} --splits test \
            --processes {threads} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule evaluate_teacher_text:
    """Measure one teacher on a further text."""
    input:
        model=paths.TEACHER_MODEL,
        tokens=paths.TEXT_TOKENS,
    output:
        paths.TEACHER_ON_TEXT,
    log:
        paths.log("evaluate_teacher_text", f"{paths.TEACHER_DIR}/texts/{{text}}"),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        mem_mb=NEEDS.mem_mb("evaluate_teacher_text"),
        runtime=NEEDS.runtime("evaluate_teacher_text"),
        gpu=NEEDS.devices * NEEDS.measuring,
        processes=NEEDS.measuring,
    params:
        timing=paths.timing("evaluate_teacher_text", f"{paths.TEACHER_DIR}/texts/{{text}}"),
        spec=spec("evaluate", STUDY.evaluate.stage()),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} {params.timing:q} \
            capgap.stages.evaluate \
            --model {input.model:q} --token-streams {input.tokens:q} --text {wildcards.text:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule evaluate_student_text:
    """Measure one student on a further text."""
    input:
        model=paths.RUN_MODEL,
        tokens=paths.TEXT_TOKENS,
    output:
        paths.RUN_ON_TEXT,
    log:
        paths.log("evaluate_student_text", f"{paths.RUN_DIR}/texts/{{text}}"),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        mem_mb=NEEDS.mem_mb("evaluate_student_text"),
        runtime=NEEDS.runtime("evaluate_student_text"),
        gpu=NEEDS.devices * NEEDS.measuring,
        processes=NEEDS.measuring,
    params:
        timing=paths.timing("evaluate_student_text", f"{paths.RUN_DIR}/texts/{{text}}"),
        spec=spec("evaluate", STUDY.evaluate.stage()),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} {params.timing:q} \
            capgap.stages.evaluate \
            --model {input.model:q} --token-streams {input.tokens:q} --text {wildcards.text:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule harness_student:
    """Measure one student of the grid on the tasks that the law is fitted on."""
    input:
        model=paths.RUN_MODEL,
        tasks=harness_files(),
    output:
        paths.RUN_HARNESS,
    log:
        paths.log("harness_student", paths.RUN_DIR),
    benchmark:
        paths.timing("harness_student", paths.RUN_DIR)
    conda:
        "../envs/harness.yaml"
    threads: NEEDS.cores
    resources:
        mem_mb=NEEDS.mem_mb("harness_student"),
        runtime=NEEDS.runtime("harness_student"),
        gpu=NEEDS.devices,
    params:
        spec=spec("harness", STUDY.student_harness()),
    shell:
        r"""
        exec python -m capgap.stages.harness \
            --model {input.model:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """
