"""How clearly the routers of a mixture of experts choose in a run of the reference.

Two experts whose scores differ by less than float32 can tell may be chosen otherwise by a correct
engine; what follows such a choice in the same sequence proves nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Shape legend: N positions of one sequence, E experts.

MIN_GAP = 1e-5
"""Between the scores, as probabilities, of the last chosen expert and the first that was not."""


@dataclass
class ClearTokens:
    """How many tokens, from the first on, every router was sure about; all without routers."""

    num_tokens: int = sys.maxsize


@contextmanager
def watched_routers(model: nn.Module) -> Iterator[ClearTokens]:
    """Look at every router's scores while the model runs one sequence."""
    clear = ClearTokens()

    def look(router: Any, _inputs: object, outputs: tuple[Tensor, ...]) -> None:
        scores_NE = torch.softmax(outputs[0].float(), dim=-1).sort(dim=-1, descending=True).values
        gaps_N = scores_NE[:, router.top_k - 1] - scores_NE[:, router.top_k]
        doubtful = (gaps_N < MIN_GAP).nonzero()
        if len(doubtful):
            clear.num_tokens = min(clear.num_tokens, int(doubtful[0]))

    routers = [one for one in model.modules() if type(one).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(look) for router in routers]
    try:
        yield clear
    finally:
        for hook in hooks:
            hook.remove()
