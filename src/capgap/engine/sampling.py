"""Continue texts with a model, token by token."""

# T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from capgap.engine.streaming import autocast, ready


@torch.no_grad()
def continuations(
    model,
    prompts: Sequence[np.ndarray],
    *,
    new_tokens: int,
    temperature: float,
    draws: Sequence[np.random.Generator],
    vocab: int,
    end_id: int,
    precision: str = "float32",
) -> list[list[int]]:
    """For each prompt (ids) at most `new_tokens` ids that follow it, without the end-of-text token.

    draws: of each prompt. temperature: 0 takes the most probable token each time. Otherwise the next
    number of the draws, uniform in [0, 1), is looked up in the cumulative distribution in the order of
    the ids, so that two models with the same distribution write the same text. vocab: size of the
    tokenizer; further rows of the head are no tokens. Texts are computed anew for each token, without
    a cache, all of them in one pass over a model whose layers lie on disk.
    """
    model.eval()
    texts = [[int(i) for i in prompt] for prompt in prompts]
    going = list(range(len(texts)))
    for _ in range(new_tokens):
        batches = [(torch.tensor([texts[i]], device=model.device), i) for i in going]
        going = []
        for ids_BT, i in ready(model, batches):
            with autocast(model, precision):
                output = model(input_ids=ids_BT, use_cache=False)
            logits_V = output.logits[0, -1, :vocab].double().cpu().numpy()
            chosen = pick(logits_V, temperature, draws[i])
            if chosen != end_id:
                texts[i].append(chosen)
                going.append(i)
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def pick(logits_V: np.ndarray, temperature: float, draws: np.random.Generator) -> int:
    """One token by its logits (float64), see `continuations`."""
    if temperature == 0:
        return int(logits_V.argmax())
    scaled = (logits_V - logits_V.max()) / temperature
    cumulative = np.cumsum(np.exp(scaled))
    place = np.searchsorted(cumulative, draws.random() * cumulative[-1], side="right")
    return int(min(place, len(logits_V) - 1))
