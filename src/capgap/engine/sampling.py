"""Continue a text with a model, token by token."""

# T tokens, V vocabulary

from __future__ import annotations

import numpy as np
import torch


@torch.no_grad()
def continuation(
    model,
    prompt_T: np.ndarray,
    *,
    new_tokens: int,
    temperature: float,
    draws: np.random.Generator,
    vocab: int,
    end_id: int,
    precision: str = "float32",
) -> list[int]:
    """Ids of at most `new_tokens` tokens that follow a prompt, without the end-of-text token.

    temperature: 0 takes the most probable token each time. Otherwise the next number of `draws`,
    uniform in [0, 1), is looked up in the cumulative distribution in the order of the ids, so that
    two models with the same distribution write the same text. vocab: size of the tokenizer; further
    rows of the head are no tokens. The text is computed anew for each token, without a cache.
    """
    model.eval()
    ids = [int(i) for i in prompt_T]
    mixed = precision != "float32"
    dtype = getattr(torch, precision) if mixed else None
    for _ in range(new_tokens):
        with torch.autocast(model.device.type, dtype, enabled=mixed):
            output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
        chosen = pick(output.logits[0, -1, :vocab].double().cpu().numpy(), temperature, draws)
        if chosen == end_id:
            break
        ids.append(chosen)
    return ids[len(prompt_T) :]


def pick(logits_V: np.ndarray, temperature: float, draws: np.random.Generator) -> int:
    """One token by its logits (float64), see `continuation`."""
    if temperature == 0:
        return int(logits_V.argmax())
    scaled = (logits_V - logits_V.max()) / temperature
    cumulative = np.cumsum(np.exp(scaled))
    place = np.searchsorted(cumulative, draws.random() * cumulative[-1], side="right")
    return int(min(place, len(logits_V) - 1))
