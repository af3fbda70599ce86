"""
Make the tokenizers of teachers that do not have the students' one, and pack the text with them.

OUT  results/{study}/tokenizers/{tokenizer}/{tokenizer,tokens}/
"""


rule make_own_tokenizer:
    """Train a tokenizer of teachers on the training split, or take the one that a teacher brings."""
    input:
        tokenizer_source,
    output:
        paths.OWN_TOKENIZER,
    log:
        paths.log("make_own_tokenizer", paths.OWN_TOKENIZER_DIR),
    benchmark:
        paths.timing("make_own_tokenizer", paths.OWN_TOKENIZER_DIR)
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=NEEDS.mem_mb("make_own_tokenizer"),
        runtime=NEEDS.runtime("make_own_tokenizer"),
    params:
        spec=spec("tokenizer", own_tokenizer_settings),
    shell:
        r"""
        exec python -m capgap.stages.tokenizer \
            --source-folder {input:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """


rule pack_own_tokens:
    """Turn the splits into flat token streams of such a tokenizer."""
    input:
        corpus=paths.CORPUS,
        tokenizer=paths.OWN_TOKENIZER,
    output:
        paths.OWN_TOKENS,
    log:
        paths.log("pack_own_tokens", paths.OWN_TOKENIZER_DIR),
    benchmark:
        paths.timing("pack_own_tokens", paths.OWN_TOKENIZER_DIR)
    conda:
        "../envs/train.yaml"
    threads: TEXT_THREADS
    resources:
        mem_mb=NEEDS.mem_mb("pack_own_tokens"),
        runtime=NEEDS.runtime("pack_own_tokens"),
    params:
        spec=spec("pack"),
    shell:
        r"""
        exec python -m capgap.stages.pack \
            --corpus {input.corpus:q} --tokenizer {input.tokenizer:q} --processes {threads} \
            --spec {params.spec:q} --out {output:q} >{log:q} 2>&1
        """
