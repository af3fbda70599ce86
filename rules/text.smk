"""
Read the corpus, make the tokenizer, pack the tokens.

OUT  results/{study}/corpus/  results/{study}/tokenizer/  results/{study}/tokens/
"""


rule prepare_corpus:
    """Read the corpus and split it by document."""
    output:
        paths.CORPUS,
    log:
        paths.log("prepare_corpus", paths.ROOT),
    benchmark:
        paths.timing("prepare_corpus", paths.ROOT)
    conda:
        "../envs/train.yaml"
    threads: TEXT_THREADS
    resources:
        mem_mb=NEEDS.mem_mb("prepare_corpus"),
        runtime=NEEDS.runtime("prepare_corpus"),
    params:
        spec=spec("corpus", STUDY.corpus),
    shell:
        r"""
        exec python -m capgap.stages.corpus --processes {threads} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule make_tokenizer:
    """Train a tokenizer on the training split, or take a teacher's."""
    input:
        tokenizer_source,
    output:
        paths.TOKENIZER,
    log:
        paths.log("make_tokenizer", paths.ROOT),
    benchmark:
        paths.timing("make_tokenizer", paths.ROOT)
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("make_tokenizer"),
        runtime=NEEDS.runtime("make_tokenizer"),
    params:
        spec=spec("tokenizer", STUDY.tokenizer),
    shell:
        r"""
        exec python -m capgap.stages.tokenizer \
            --source-folder {input:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule pack_tokens:
    """Turn the splits into flat token streams."""
    input:
        corpus=paths.CORPUS,
        tokenizer=paths.TOKENIZER,
    output:
        paths.TOKENS,
    log:
        paths.log("pack_tokens", paths.ROOT),
    benchmark:
        paths.timing("pack_tokens", paths.ROOT)
    conda:
        "../envs/train.yaml"
    threads: TEXT_THREADS
    resources:
        mem_mb=NEEDS.mem_mb("pack_tokens"),
        runtime=NEEDS.runtime("pack_tokens"),
    params:
        spec=spec("pack"),
    shell:
        r"""
        exec python -m capgap.stages.pack \
            --corpus {input.corpus:q} --tokenizer {input.tokenizer:q} --processes {threads} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """
