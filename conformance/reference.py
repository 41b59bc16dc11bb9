"""What transformers alone thinks of some continuations: the figures that lm-eval's must equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAIRS = (
    ("Once upon a time", " there was a little fox."),
    ("The fox was", " happy"),
    ("One day", " zebra quantum"),
)


def loglikelihoods(model_dir: Path) -> list[dict[str, Any]]:
    """Return each pair with its continuation's log probability and whether it is the greedy one."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    found = []
    for context, continuation in PAIRS:
        # As lm-eval does: the two are encoded together, and split where the context's tokens end.
        whole = tokenizer.encode(context + continuation, add_special_tokens=False).ids
        start = len(tokenizer.encode(context, add_special_tokens=False).ids)
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        steps = [(logprobs_TV[place - 1], whole[place]) for place in range(start, len(whole))]
        found.append(
            {
                "context": context,
                "continuation": continuation,
                "logprob": sum(float(row[token]) for row, token in steps),
                "is_greedy": all(int(row.argmax()) == token for row, token in steps),
            }
        )
    return found
