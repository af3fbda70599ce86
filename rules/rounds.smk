"""
Take pruned inits there in several cuts: cut, train and score, and cut on; nothing with one round.

IN   results/{study}/{replica}teachers/{teacher}/{model/,importance/,targets/}  results/{study}/tokens/
OUT  results/{study}/{replica}inits/{student}/pruned-{teacher}/round-{number}/
     Each cut starts from the round before; the last one is the rule prune_student.
"""

ROUND_OF = paths.ROUND_DIR.replace("{init}", "pruned-{teacher}")


rule cut_round:
    """Prune one teacher, or what is left of it, a part of the way to a student size."""
    input:
        model=model_to_cut,
        importance=scores_to_cut_by,
        shape=shared_shape,
        tokens=refit_tokens,
    output:
        paths.ROUND_CUT.replace("{init}", "pruned-{teacher}"),
    log:
        paths.log("cut_round", ROUND_OF),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.cores
    resources:
        mem_mb=NEEDS.mem_mb("cut_round"),
        runtime=NEEDS.runtime("cut_round"),
        gpu=NEEDS.devices if STUDY.prune.refit != "none" else 0,
    params:
        timing=paths.timing("cut_round", ROUND_OF),
        spec=spec("prune", STUDY.prune.cutting()),
        asked=prune_options,
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} {params.timing:q} capgap.stages.prune \
            {input.model:q} --importance {input.importance:q} --tokens {input.tokens:q} \
            {params.asked} --shape-like {input.shape:q} --name {wildcards.student:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule distill_round:
    """Train an init between two cuts with the teacher that it is pruned from."""
    input:
        init=paths.ROUND_CUT.replace("{init}", "pruned-{teacher}"),
        teacher=own_teacher,
        targets=run_targets,
        tokens=paths.TOKENS,
    output:
        model=paths.ROUND_MODEL.replace("{init}", "pruned-{teacher}"),
        curve=paths.ROUND_CURVE.replace("{init}", "pruned-{teacher}"),
        train=paths.ROUND_TRAIN.replace("{init}", "pruned-{teacher}"),
    log:
        paths.log("distill_round", ROUND_OF),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        **TRAINING,
        mem_mb=NEEDS.mem_mb("distill_round"),
        runtime=NEEDS.runtime("distill_round"),
        gpu=NEEDS.devices * NEEDS.processes,
        processes=NEEDS.processes,
        nodes=NEEDS.nodes,
        shard=int(STUDY.plan.shard),
    params:
        timing=paths.timing("distill_round", ROUND_OF),
        spec=spec("distill", STUDY.round_stage()),
        asked=round_options,
        out=round_folder,
        scratch=paths.scratch(ROUND_OF),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} --nodes {resources.nodes} \
            --cores {threads} --shard {resources.shard} {params.timing:q} capgap.stages.distill \
            --init {input.init:q} --teacher {input.teacher:q} \
            --targets {input.targets:q} --token-streams {input.tokens:q} \
            {params.asked} --spec {params.spec:q} \
            --scratch {params.scratch:q} --out {params.out:q} >{log:q} 2>&1
        """


rule score_round:
    """Score an init between two cuts, as a teacher is scored."""
    input:
        model=paths.ROUND_MODEL.replace("{init}", "pruned-{teacher}"),
        tokens=paths.TOKENS,
    output:
        paths.ROUND_IMPORTANCE.replace("{init}", "pruned-{teacher}"),
    log:
        paths.log("score_round", ROUND_OF),
    conda:
        "../envs/train.yaml"
    threads: NEEDS.threads
    resources:
        mem_mb=NEEDS.mem_mb("score_round"),
        runtime=NEEDS.runtime("score_round"),
        gpu=NEEDS.devices * NEEDS.measuring,
        processes=NEEDS.measuring,
    params:
        timing=paths.timing("score_round", ROUND_OF),
        spec=spec("score", score_settings),
    shell:
        r"""
        exec python -m capgap.workflow.launch --gpus {resources.gpu} --processes {resources.processes} {params.timing:q} \
            capgap.stages.score \
            --model {input.model:q} --tokens {input.tokens:q} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """
