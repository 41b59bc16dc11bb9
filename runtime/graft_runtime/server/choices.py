"""Several answers to one prompt: its prompt is computed once, and the others begin from there.

Knows no surface. The first answer of a group runs alone until its first token; by then the whole
prompt is in the engine's cache, and the others find it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec

from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.generation import Job, Piece, generate
from graft_runtime.server.merge import merge
from graft_runtime.server.siblings import Siblings


def fork(job: Job, count: int) -> list[Job]:
    """Return jobs for several answers, which differ in what is drawn.

    Only the first is asked what the model thought of the prompt.
    """
    job = replace(job, siblings=Siblings(count))
    rest = [
        replace(
            job,
            id=f"{job.id}-{index}",
            sampling=msgspec.structs.replace(
                job.sampling, sample_index=index, prompt_logprobs=None
            ),
        )
        for index in range(1, count)
    ]
    return [job, *rest]


def generate_groups(
    frontend: Frontend, exchange: Exchange, groups: Sequence[Sequence[Job]]
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield all jobs' pieces, each with its job's place in the flattened groups."""
    sources: list[AsyncGenerator[Piece, None]] = []
    for first, *rest in groups:
        has_begun = asyncio.Event()
        sources.append(_announce(generate(frontend, exchange, first), has_begun))
        sources += [_follow(generate(frontend, exchange, job), has_begun) for job in rest]
    return merge(sources)


async def _announce(
    pieces: AsyncGenerator[Piece, None], has_begun: asyncio.Event
) -> AsyncGenerator[Piece, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            has_begun.set()
            yield piece


async def _follow(
    pieces: AsyncGenerator[Piece, None], has_begun: asyncio.Event
) -> AsyncGenerator[Piece, None]:
    """Wait for the group's first; what its prompt left in the cache is no saving of the client."""
    async with aclosing(pieces):
        await has_begun.wait()
        async for piece in pieces:
            yield replace(piece, num_cached=0)
