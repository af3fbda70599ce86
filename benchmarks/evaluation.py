"""
How fast is the held-out loss compared with lm-evaluation-harness, on the same model, text and windows?

Both give the loss of one text in windows of tokens that do not overlap, from the text on; they must
agree to 1e-4 nats per token. Time is CPU seconds of one thread, the median of --repeats in turn;
each side gets the fastest of several batch sizes, and so does the model alone, from token ids to
logits, which either side has to pay. Models are random: the largest teacher of the
default study, and six layers of SmolLM2-135M with a small and with its own vocabulary.

    python benchmarks/evaluation.py

Needs lm-eval (make lm-eval).
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from capgap.config.shapes import LlamaShape
from capgap.engine.evaluation import mean_loss
from capgap.engine.models import llama_config, new_model

CASES = {  # shape, tokens of a window, tokens of the text
    "t126k": (LlamaShape(4, 56, 7, 7, 8, 112, vocab=1024, tied=True), 64, 65536),
    "SmolLM2, V = 8,000": (LlamaShape(6, 576, 9, 3, 64, 1536, vocab=8000, tied=True), 256, 4096),
    "SmolLM2, V = 49,152": (LlamaShape(6, 576, 9, 3, 64, 1536, vocab=49152, tied=True), 256, 4096),
}
BATCHES = (1, 4, 16, 64)  # sequences


def words(entries: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words w1, w2 and so on."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, entries)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


def cpu_seconds(job) -> tuple[float, float]:
    """What a job returns, and its CPU seconds."""
    started = time.process_time()
    value = job()
    return value, time.process_time() - started


def main() -> None:
    """Measure and print one line a vocabulary."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tokens", type=int, help="of the text (default: as the case says)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | capgap, CPU s | lm-eval, CPU s | ratio | model alone, CPU s | losses differ by |\n"
        "|---|---|---|---|---|---|"
    )
    for name in args.cases:
        shape, context, count = CASES[name]
        count = (args.tokens or count) // context * context
        tokenizer = words(shape.vocab)
        model = new_model(llama_config(shape, max_positions=context, bos_id=0, eos_id=0), seed=0)
        model.eval()
        ids = np.random.default_rng(0).integers(1, shape.vocab, count)
        text = " ".join(f"w{i}" for i in ids)

        def ours(batch, model=model, tokenizer=tokenizer, text=text, context=context):
            stream = np.array([0, *tokenizer(text)["input_ids"]], dtype=np.uint16)
            return mean_loss(
                model,
                stream,
                sequence_length=context,
                batch_tokens=batch * context,
                split="text",
            )

        def theirs(batch, model=model, tokenizer=tokenizer, text=text, context=context):
            evaluator = HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=context
            )
            request = Instance("loglikelihood_rolling", {}, (text,), 0)
            (value,) = evaluator.loglikelihood_rolling([request], disable_tqdm=True)
            return -value / count  # noqa: B023 - called within the loop

        def alone(batch, model=model, ids=ids, context=context):
            with torch.no_grad():
                for rows in torch.from_numpy(ids).view(-1, context).split(batch):
                    model(rows, use_cache=False)

        jobs = (ours, theirs, alone)
        seconds = {(job, batch): [] for job in jobs for batch in BATCHES}
        for _ in range(args.repeats):
            losses = []
            for (job, batch), times in seconds.items():
                loss, spent = cpu_seconds(lambda job=job, batch=batch: job(batch))
                losses += [loss] if job is not alone else []
                times.append(spent)
            assert max(losses) - min(losses) < 1e-4, losses
        fastest = [min(median(seconds[job, batch]) for batch in BATCHES) for job in jobs]
        print(
            f"| {name} | {fastest[0]:.2f} | {fastest[1]:.2f} | {fastest[1] / fastest[0]:.2f} | "
            f"{fastest[2]:.2f} | {max(losses) - min(losses):.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
