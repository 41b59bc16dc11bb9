"""The answer to a completions request, whole or as events: choices by index, echo, usage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from graft_runtime.ipc.messages import TokenScore
from graft_runtime.server.choices import generate_groups
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.generation import Job, Piece, Token
from graft_runtime.server.openai.answer import Usage, finish_reason, stop_reason
from graft_runtime.server.openai.logprobs import completion_logprobs, prompt_logprobs
from graft_runtime.server.prompt_tokens import prompt_tokens
from graft_runtime.server.sse import DONE, event


@dataclass(frozen=True)
class Prompted:
    """One prompt and its jobs, one per answer."""

    shown: str
    """The prompt as it is echoed; empty if it is not."""
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Completion:
    """A request ready to run."""

    id: str
    created: int
    groups: tuple[Prompted, ...]
    num_top: int | None
    """Likeliest tokens told with each one; None tells no log probabilities."""
    num_prompt_top: int | None
    """The same in vLLM's separate list of the prompt's tokens."""
    echoes: bool
    has_output: bool
    """False when only the prompt is of interest."""
    wants_usage: bool
    wants_running_usage: bool
    returns_ids: bool
    """Whether the tokens' ids stand beside the text."""
    names_by_id: bool
    """Whether log probabilities name tokens by their ids."""

    def envelope(self) -> dict[str, Any]:
        """Return what every object of the answer begins with."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.groups[0].jobs[0].target.served_name,
        }

    def usage(self) -> Usage:
        """Return the counts before any output; a prompt counts once for all its answers."""
        return Usage(sum(len(group.jobs[0].token_ids) for group in self.groups))


@dataclass
class _Choice:
    """One choice as it grows."""

    prompted: Prompted
    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    last: Piece | None = None
    offset: int = 0
    """Characters of text before the next token."""
    token_ids: list[int] = field(default_factory=list)
    """Of the output alone."""
    num_told: int = 0
    """How many of them have been told."""

    def new_ids(self) -> dict[str, Any]:
        """Return the ids that have not been told, and those of the prompt before the first."""
        ids = {"token_ids": self.token_ids[self.num_told :]}
        if not self.num_told:
            ids["prompt_token_ids"] = self.prompted.jobs[0].token_ids
        self.num_told = len(self.token_ids)
        return ids


class _Choices:
    """All choices of an answer, and the scores of their prompts."""

    def __init__(self, call: Completion) -> None:
        self.usage = call.usage()
        self.all = [_Choice(group) for group in call.groups for _ in group.jobs]
        self._call = call
        self._scores: dict[int, Sequence[TokenScore]] = {}

    async def pieces(
        self, frontend: Frontend, exchange: Exchange
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield each choice's pieces as they are shown: echoed, or without output."""
        groups = [group.jobs for group in self._call.groups]
        async with aclosing(generate_groups(frontend, exchange, groups)) as pieces:
            async for index, piece in pieces:
                if piece.prompt_scores is not None:
                    self._scores[id(self.all[index].prompted)] = piece.prompt_scores
                shown = self._shown(self.all[index], piece)
                self.all[index].last = shown
                yield index, shown

    def prompt_logprobs(self, choice: _Choice) -> list[dict[str, Any] | None] | None:
        """Return vLLM's list for a choice, if it was asked for."""
        if self._call.num_prompt_top is None:
            return None
        job = choice.prompted.jobs[0]
        scores = self._scores[id(choice.prompted)]
        return prompt_logprobs(job.tokenizer, job.token_ids, scores, self._call.num_prompt_top)

    def _shown(self, choice: _Choice, piece: Piece) -> Piece:
        if self._call.has_output:
            self.usage.add(piece)
            choice.token_ids += [token.id for token in piece.tokens]
        else:
            self.usage.cached_tokens += piece.num_cached
            piece = replace(piece, text="", tokens=())
        if self._call.echoes and choice.last is None:
            tokens = (*self._echo(choice), *piece.tokens)
            piece = replace(piece, text=choice.prompted.shown + piece.text, tokens=tokens)
        return piece

    def _echo(self, choice: _Choice) -> list[Token]:
        """Return the prompt's tokens, if anyone wants to know of tokens."""
        if self._call.num_top is None:
            return []
        job = choice.prompted.jobs[0]
        scores = self._scores[id(choice.prompted)]
        return prompt_tokens(job.tokenizer, job.token_ids, scores, self._call.num_top)


async def whole(frontend: Frontend, exchange: Exchange, call: Completion) -> dict[str, Any]:
    """Return the whole answer."""
    choices = _Choices(call)
    async with aclosing(choices.pieces(frontend, exchange)) as pieces:
        async for index, piece in pieces:
            choices.all[index].text.append(piece.text)
            choices.all[index].tokens += piece.tokens
    return {
        **call.envelope(),
        "choices": [_whole_choice(call, choices, index) for index in range(len(choices.all))],
        "usage": choices.usage.to_json(),
    }


def _whole_choice(call: Completion, choices: _Choices, index: int) -> dict[str, Any]:
    choice = choices.all[index]
    end = choice.last.end if choice.last else None
    body = {
        "index": index,
        "text": "".join(choice.text),
        "logprobs": None if call.num_top is None else _logprobs(call, choice.tokens, 0),
        "finish_reason": finish_reason(end),
        "stop_reason": stop_reason(end),
    }
    if call.returns_ids:
        body["prompt_token_ids"] = choice.prompted.jobs[0].token_ids
        body["token_ids"] = choice.token_ids
    scores = choices.prompt_logprobs(choice)
    return body if scores is None else {**body, "prompt_logprobs": scores}


async def events(
    frontend: Frontend, exchange: Exchange, call: Completion
) -> AsyncGenerator[bytes, None]:
    """Yield the answer's events, ``[DONE]`` included."""
    choices = _Choices(call)
    async with aclosing(choices.pieces(frontend, exchange)) as pieces:
        async for index, piece in pieces:
            choice = choices.all[index]
            logprobs = None
            if call.num_top is not None:
                logprobs = _logprobs(call, piece.tokens, choice.offset)
                choice.offset += sum(len(token.text) for token in piece.tokens)
            shown = _chunk_choice(index, piece, logprobs)
            if call.returns_ids:
                shown |= choice.new_ids()
            chunk = {**call.envelope(), "choices": [shown]}
            if call.wants_running_usage:
                chunk["usage"] = choices.usage.to_json()
            if piece.text or piece.end or logprobs or shown.get("token_ids"):
                yield event(chunk)
    if call.wants_usage:
        yield event({**call.envelope(), "choices": [], "usage": choices.usage.to_json()})
    yield DONE


def _logprobs(call: Completion, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    return completion_logprobs(tokens, offset, by_id=call.names_by_id)


def _chunk_choice(index: int, piece: Piece, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "index": index,
        "text": piece.text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(piece.end),
        "stop_reason": stop_reason(piece.end),
    }
