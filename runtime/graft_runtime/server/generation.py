"""One request through the backend: tokens become text, stop strings end it, its course is recorded.

Every surface consumes `generate`; none talks to the backend's generator itself, so closing, metrics
and the log are in one place.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from graft_runtime.errors import EngineDiedError
from graft_runtime.ipc.messages import Sampling, TokenScore
from graft_runtime.server.alternatives import Alternative, name_alternatives
from graft_runtime.server.backend import DEFAULT_TERMS, Target, Terms, TokenChunk
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.record import Record
from graft_runtime.server.siblings import Siblings
from graft_runtime.text.detokenizer import Detokenizer
from graft_runtime.text.stop import StopMatcher
from graft_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """One prompt to run, fully validated."""

    id: str
    """Unique in the engine, whatever ids clients send."""
    token_ids: list[int]
    sampling: Sampling
    target: Target
    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    """Whether matched stop strings and stop tokens stay in the text."""
    shown_specials: frozenset[int] = frozenset()
    """Control tokens that stand in the text as they are written, though others are left out."""
    skip_specials: bool = True
    """Whether control tokens are left out of the text."""
    terms: Terms = DEFAULT_TERMS
    siblings: Siblings = field(default_factory=Siblings)
    """The request's choices, of which this is one."""
    stream_interval: int = 1
    """Tokens that come in one piece, the first and the last piece excepted."""


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    text: str
    """What it added to the text; "" amid a character."""
    logprob: float | None
    special: bool
    top: tuple[Alternative, ...] = ()
    """The likeliest tokens there, the best first, if asked for."""


@dataclass(frozen=True)
class End:
    """Why a generation ended."""

    reason: Literal["length", "eos", "stop_token", "stop_string", "abort"]
    stop: str | int | None = None
    """The stop string or stop token that ended it."""


@dataclass(frozen=True)
class Piece:
    """What one output of the engine became. The last one, and only it, has an end."""

    text: str
    """Text that is certain, stop strings considered."""
    tokens: tuple[Token, ...]
    end: End | None = None
    num_cached: int = 0
    """Prompt tokens that did not have to be computed; told once, in a request's first piece."""
    prompt_scores: tuple[TokenScore, ...] | None = None
    """What the model thought of the prompt, if asked for; told once, too."""
    embedding: bytes | None = None
    """The prompt's hidden states, pooled, if asked for: float32, little-endian."""
    queue_seconds: float | None = None
    """How long the request waited before anything of it was computed; told once, too."""
    first_token_seconds: float | None = None
    """From the request's arrival to its first token; told once, too."""

    def then(self, later: Piece) -> Piece:
        """Return this piece and the one after it as one."""
        return replace(
            self, text=self.text + later.text, tokens=self.tokens + later.tokens, end=later.end
        )


async def generate(frontend: Frontend, exchange: Exchange, job: Job) -> AsyncGenerator[Piece, None]:
    """Run a job.

    Closing this generator aborts the job in the engine at once.

    Raises:
        RequestError: The backend could not begin or go on.
    """
    record = Record(frontend, exchange, job)
    reader = _Reader(job)
    terms = replace(job.terms.over(exchange.terms), timeout_seconds=exchange.timeout_seconds)
    chunks = frontend.backend.generate(job.id, job.token_ids, job.sampling, job.target, terms)
    with record:
        async with aclosing(chunks):
            is_first = True
            held: Piece | None = None
            async for chunk in chunks:
                piece = reader.read(chunk)
                interval = job.stream_interval
                if is_first:
                    is_first, interval = False, 1
                    record.queue_seconds = chunk.queue_seconds
                    record.num_cached = chunk.num_cached
                    piece = replace(
                        piece,
                        num_cached=chunk.num_cached,
                        prompt_scores=chunk.prompt_scores,
                        embedding=chunk.embedding,
                        queue_seconds=chunk.queue_seconds,
                        first_token_seconds=exchange.elapsed(),
                    )
                record.num_preemptions = chunk.num_preemptions
                record.tokens(len(piece.tokens))
                if record.text is not None:
                    record.text.append(piece.text)
                if held is not None:
                    piece, held = held.then(piece), None
                if piece.end is not None:
                    record.end = piece.end.reason
                    await chunks.aclose()
                    record.close()
                elif len(piece.tokens) < interval:
                    held = piece
                    continue
                yield piece
                if piece.end is not None:
                    return
        raise EngineDiedError("the output ended without a reason")


class _Reader:
    """Turns chunks of tokens into pieces of text."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._text = Detokenizer(job.tokenizer, skip_special_tokens=job.skip_specials)
        self._stop = StopMatcher(job.stops, keep=job.keep_stop)
        self._before = job.token_ids[-1:]

    def read(self, chunk: TokenChunk) -> Piece:
        """Read one chunk; tokens behind a stop string are dropped."""
        if chunk.finish_reason == "error":
            raise EngineDiedError("the engine failed under this request")
        logprobs: Sequence[float | None] = chunk.logprobs or [None] * len(chunk.token_ids)
        ending = self._ending_token(chunk)
        texts: list[str] = []
        tokens: list[Token] = []
        for position, (id, logprob) in enumerate(zip(chunk.token_ids, logprobs, strict=True)):
            is_last = position == len(chunk.token_ids) - 1
            is_ending = is_last and (ending is not None or self._is_end_token(chunk))
            added = "" if is_ending and not self._job.keep_stop else self._added(id)
            tokens.append(self._token(id, added, logprob, self._alternatives(chunk, position)))
            self._before = [id]
            matched = self._stop.push(added)
            texts.append(matched.text)
            if matched.stop is not None:
                end = End("stop_string", matched.stop)
                return Piece("".join(texts), tuple(tokens), end)
        if chunk.finish_reason is None:
            return Piece("".join(texts), tuple(tokens))
        return self._last("".join(texts), tokens, self._end(chunk, ending))

    def _added(self, id: int) -> str:
        """Return what a token adds to the text."""
        if id in self._job.shown_specials:
            return self._text.flush() + self._job.tokenizer.special_text(id)
        return self._text.push(id)

    def _is_end_token(self, chunk: TokenChunk) -> bool:
        """Tell whether a chunk ends with the model's end token; a grammar may end on any other."""
        return chunk.finish_reason == "stop" and self._job.tokenizer.is_special(chunk.token_ids[-1])

    def _ending_token(self, chunk: TokenChunk) -> int | None:
        """Return the client's stop token that ended the output, if one did."""
        last = chunk.token_ids[-1:]
        is_stop = chunk.finish_reason == "stop" and bool(last)
        return last[0] if is_stop and last[0] in self._job.sampling.stop_token_ids else None

    def _alternatives(self, chunk: TokenChunk, position: int) -> tuple[Alternative, ...]:
        if chunk.top_logprobs is None:
            return ()
        return name_alternatives(self._job.tokenizer, self._before, chunk.top_logprobs[position])

    def _token(
        self, id: int, added: str, logprob: float | None, top: tuple[Alternative, ...]
    ) -> Token:
        special = self._job.tokenizer.is_special(id)
        text = self._job.tokenizer.special_text(id) if special else added
        return Token(id, text, logprob, special, top)

    def _end(self, chunk: TokenChunk, ending: int | None) -> End:
        if chunk.finish_reason == "length":
            return End("length")
        if chunk.finish_reason == "abort":
            return End("abort")
        return End("eos") if ending is None else End("stop_token", ending)

    def _last(self, text: str, tokens: list[Token], end: End) -> Piece:
        """Give out what was held back; even that can complete a stop string."""
        rest = self._text.flush()
        matched = self._stop.push(rest)
        text += matched.text
        if matched.stop is not None:
            return Piece(text, tuple(tokens), End("stop_string", matched.stop))
        return Piece(text + self._stop.flush(), tuple(tokens), end)
