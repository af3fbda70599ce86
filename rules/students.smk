"""
Make the students' inits, train each student with its teacher, and measure it.

IN   results/{study}/{replica}teachers/{teacher}/{model/,importance/}  results/{study}/tokens/
OUT  results/{study}/{replica}inits/{student}/{init}/model/
     results/{study}/{replica}students/{student}/{init}/from-{teacher}/{weight}tokens-{tokens}/seed-{seed}/
     With distill.schedule wsd each budget of a run continues from the stable phase of the next smaller
     one (its trunk), so that adding a larger budget reruns nothing.
"""


rule prune_student:
    """Prune one teacher, or what earlier rounds left of it, to one student size."""
    input:
        model=model_to_cut,
        importance=scores_to_cut_by,
        shape=shared_shape,
        tokens=refit_tokens,
    output:
        paths.INIT_MODEL.replace("{init}", "pruned-{teacher}"),
    log:
        paths.log("prune_student", paths.INIT_DIR.replace("{init}", "pruned-{teacher}")),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.cores
    resources:
        mem_mb=NEEDS.mem_mb("prune_student"),
        runtime=NEEDS.runtime("prune_student"),
        gpu=NEEDS.devices if STUDY.prune.refit != "none" else 0,
    params:
        timing=paths.timing("prune_student", paths.INIT_DIR.replace("{init}", "pruned-{teacher}")),
        spec=spec("prune", STUDY.prune.cutting()),
        asked=prune_options,
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} {params.timing:q} capgap.stages.prune \
            {input.model:q} --importance {input.importance:q} --tokens {input.tokens:q} \
            {params.asked} --shape-like {input.shape:q} --name {wildcards.student:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule random_init_student:
    """Make a random init of one student size."""
    input:
        like=shape_model,
        tokenizer=students_tokenizer,
    output:
        paths.INIT_MODEL.replace("{init}", run_grid.RANDOM),
    log:
        paths.log("random_init_student", paths.INIT_DIR.replace("{init}", run_grid.RANDOM)),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("random_init_student"),
        runtime=NEEDS.runtime("random_init_student"),
    params:
        timing=paths.timing(
            "random_init_student", paths.INIT_DIR.replace("{init}", run_grid.RANDOM)
        ),
        spec=spec("random_init", STUDY.prune.shaping()),
        asked=random_init_options,
    shell:
        r"""
        exec python -m capgap.workflow.launch {params.timing:q} capgap.stages.random_init \
            --like {input.like:q} --tokenizer {input.tokenizer:q} {params.asked} \
            --name {wildcards.student:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule given_student:
    """Make the init of a given student, with the study's tokenizer."""
    input:
        model=given_model,
        tokenizer=paths.TOKENIZER,
    output:
        paths.INIT_MODEL.replace("{init}", f"{run_grid.GIVEN}{{given}}"),
    log:
        paths.log("given_student", paths.INIT_DIR.replace("{init}", f"{run_grid.GIVEN}{{given}}")),
    wildcard_constraints:
        given=one_of(STUDY.given_names()),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("given_student"),
        runtime=NEEDS.runtime("given_student"),
    params:
        timing=paths.timing(
            "given_student", paths.INIT_DIR.replace("{init}", f"{run_grid.GIVEN}{{given}}")
        ),
        spec=spec("given"),
    shell:
        r"""
        exec python -m capgap.workflow.launch {params.timing:q} capgap.stages.given \
            --model {input.model:q} --tokenizer {input.tokenizer:q} --name {wildcards.given:q} \
            --size {wildcards.student:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule distill_student:
    """Train one student from its init, with one teacher and one seed."""
    input:
        init=paths.INIT_MODEL,
        teacher=run_teacher,
        targets=run_targets,
        tokens=paths.TOKENS,
        teacher_tokens=run_teacher_tokens,
        trunk=shorter_trunk,
    output:
        model=paths.RUN_MODEL,
        curve=paths.RUN_CURVE,
        train=paths.RUN_TRAIN,
        trunk=TRUNK,
    log:
        paths.log("distill_student", paths.RUN_DIR),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        **TRAINING,
        mem_mb=NEEDS.mem_mb("distill_student"),
        runtime=NEEDS.runtime("distill_student"),
        gpu=NEEDS.devices * NEEDS.processes,
        processes=NEEDS.processes,
        nodes=NEEDS.nodes,
        shard=int(STUDY.plan.shard),
    params:
        timing=paths.timing("distill_student", paths.RUN_DIR),
        spec=spec("distill", distill_settings),
        out=paths.RUN_DIR,
        scratch=paths.scratch(paths.RUN_DIR),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} --nodes {resources.nodes} \
            --cores {threads} --shard {resources.shard} {params.timing:q} capgap.stages.distill \
            --init {input.init:q} --teacher {input.teacher:q} \
            --targets {input.targets:q} --token-streams {input.tokens:q} \
            --teacher-streams {input.teacher_tokens:q} --trunk {input.trunk:q} \
            --tokens {wildcards.tokens:q} --seed {wildcards.seed} --spec {params.spec:q} \
            --scratch {params.scratch:q} --out {params.out:q} >{log:q} 2>&1
        """


rule evaluate_student:
    """Measure one student on held-out text."""
    input:
        model=paths.RUN_MODEL,
        tokens=paths.TOKENS,
    output:
        paths.RUN_METRICS,
    log:
        paths.log("evaluate_student", paths.RUN_DIR),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        mem_mb=NEEDS.mem_mb("evaluate_student"),
        runtime=NEEDS.runtime("evaluate_student"),
        gpu=NEEDS.devices * NEEDS.measuring,
        processes=NEEDS.measuring,
    params:
        timing=paths.timing("evaluate_student", paths.RUN_DIR),
        spec=spec("evaluate", STUDY.evaluate.stage()),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} {params.timing:q} \
            capgap.stages.evaluate \
            --model {input.model:q} --token-streams {input.tokens:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """
