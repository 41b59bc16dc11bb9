"""An engine over a model without weights, whose logits depend on the last token alone.

Everything but the forward pass is real: scheduler, plan, runner and sampler. Preemption, chunks and
the prefix cache change nothing in what such a model says, so neither may they in what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graft_runtime.engine.engine import Engine, EngineLimits
from graft_runtime.engine.runner import Runner
from graft_runtime.engine.scheduler import SchedulerLimits
from graft_runtime.ipc.messages import Sampling, Submit, TokenOutput
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.sampling.grammar import Vocabulary
from graft_runtime.sampling.plugins import Plugins
from tests.support.memory_slots import MemorySlots

# Shape legend: V vocabulary, T tokens, S rows that get a new token.


class BigramModel:
    """Fixed random logits after each token, drawn toward some of them."""

    def __init__(self, vocab: int, seed: int, liked: Mapping[int, float]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table_VV = torch.randn(vocab, vocab, generator=generator) * 2
        for token, bias in liked.items():
            self.table_VV[:, token] += bias

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.table_VV[batch.token_ids_T[batch.logits_rows_S]].clone()


@dataclass
class BigramEngine:
    """The engine and what it has said."""

    engine: Engine
    outputs: dict[str, list[TokenOutput]] = field(default_factory=dict)

    def submit(self, name: str, prompt: list[int], **sampling: object) -> None:
        fields = {"max_tokens": 60, "temperature": 1.0} | sampling
        self.outputs[name] = []
        self.engine.submit(Submit(name, prompt, Sampling(**fields)))  # type: ignore[arg-type] # test shorthand

    def step(self) -> None:
        for output in self.engine.step().outputs:
            self.outputs[output.request_id].append(output)

    def finish(self) -> None:
        while self.engine.has_work:
            self.step()
        self.engine.check_integrity()

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs[name] for token in output.token_ids]

    def ending(self, name: str) -> TokenOutput:
        return self.outputs[name][-1]


def bigram_engine(
    vocab: int,
    eos_ids: frozenset[int],
    *,
    vocabulary: Vocabulary | None = None,
    plugins: Plugins | None = None,
    liked: Mapping[int, float] | None = None,
    num_blocks: int = 256,
    max_model_len: int = 512,
    seed: int = 0,
) -> BigramEngine:
    """Return an engine with blocks of 8 tokens; few of them make it preempt."""
    limits = SchedulerLimits(8, max_batch_tokens=64, max_running=16, max_chunk_tokens=16)
    engine = Engine(
        EngineLimits(limits, num_blocks, max_model_len, eos_ids),
        Runner(BigramModel(vocab, seed, liked or {}), torch.device("cpu")),
        MemorySlots(1),
        vocabulary,
        plugins,
    )
    return BigramEngine(engine)
