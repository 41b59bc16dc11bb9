"""A backend that answers whatever it is asked, with everything that was asked for."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from graft_runtime.ipc.messages import Sampling, TokenScore
from graft_runtime.server.backend import DEFAULT_TERMS, Target, Terms, TokenChunk
from tests.support.fake_backend import FakeBackend, Submitted

LONGEST = 6
"""Tokens, whatever was allowed."""


@dataclass
class AnyBackend(FakeBackend):
    """Gives tokens, log probabilities, scores and vectors that are made up, but all there."""

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        sampling: Sampling,
        target: Target,
        terms: Terms = DEFAULT_TERMS,
    ) -> AsyncGenerator[TokenChunk, None]:
        self.submitted.append(Submitted(request_id, token_ids, sampling, target, terms))
        if sampling.pooling is not None:
            yield TokenChunk((), None, "stop", embedding=struct.pack("<3f", 1.0, 2.0, 2.0))
            return
        count = min(sampling.max_tokens, LONGEST)
        for index in range(count):
            top = tuple((5 + rank, -1.0 - rank) for rank in range(sampling.top_logprobs))
            scores = None
            if sampling.prompt_logprobs is not None and not index:
                best = [(5 + rank, -1.0 - rank) for rank in range(sampling.prompt_logprobs)]
                scores = (TokenScore(-1.0, 1, best),) * (len(token_ids) - 1)
            yield TokenChunk(
                (5 + index,),
                (-0.5,) if sampling.logprobs else None,
                "length" if index == count - 1 else None,
                top_logprobs=(top,) if sampling.top_logprobs else None,
                prompt_scores=scores,
            )
