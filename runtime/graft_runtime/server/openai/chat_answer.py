"""The answer to a chat, whole or as events: what the model says, by choice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from graft_protocol import __version__
from graft_runtime.ipc.messages import TokenScore
from graft_runtime.server.backend import Target
from graft_runtime.server.choices import generate_groups
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.generation import End, Job, Piece, Token
from graft_runtime.server.openai.answer import Usage, finish_reason, stop_reason
from graft_runtime.server.openai.chat_fields import ChatFields
from graft_runtime.server.openai.chat_message import ChatMessage
from graft_runtime.server.openai.logprobs import chat_logprobs, prompt_logprobs
from graft_runtime.server.openai.speech import Speech, SpeechPlan
from graft_runtime.server.sse import DONE, event


@dataclass(frozen=True)
class ChatCall:
    """A request ready to run."""

    id: str
    created: int
    fields: ChatFields
    target: Target
    jobs: tuple[Job, ...]
    """One per choice."""
    plan: SpeechPlan
    echoed: str = ""
    """What stands before the answer: the message that it continues, if that was asked for."""

    @property
    def job(self) -> Job:
        """The first one; all have the same prompt."""
        return self.jobs[0]

    def envelope(self, object: str) -> dict[str, Any]:
        """Return what every object of the answer begins with."""
        return {
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.target.served_name,
        }


@dataclass
class _Choice:
    """One choice, as it grows."""

    speech: Speech
    message: ChatMessage = field(default_factory=ChatMessage)
    tokens: list[Token] = field(default_factory=list)
    end: End | None = None

    def read(self, piece: Piece) -> list[dict[str, Any]]:
        """Take a piece and return the deltas that it makes certain."""
        self.tokens += piece.tokens
        self.end = piece.end
        return self.message.take(self.speech.push(piece.text, is_last=piece.end is not None))

    @property
    def finish_reason(self) -> str | None:
        reason = finish_reason(self.end)
        return "tool_calls" if reason == "stop" and self.speech.ends_in_calls else reason


async def whole(frontend: Frontend, exchange: Exchange, call: ChatCall) -> dict[str, Any]:
    """Return the whole answer."""
    choices = [_Choice(Speech(call.plan)) for _ in call.jobs]
    scores: tuple[TokenScore, ...] | None = None
    usage = Usage(len(call.job.token_ids))
    async with aclosing(generate_groups(frontend, exchange, [call.jobs])) as pieces:
        async for index, piece in pieces:
            usage.add(piece)
            choices[index].read(piece)
            scores = scores if piece.prompt_scores is None else piece.prompt_scores
    body = {
        **call.envelope("chat.completion"),
        "system_fingerprint": f"graft-{__version__}",  # TGI's client needs one
        "choices": [_whole_choice(call, index, choice) for index, choice in enumerate(choices)],
        "usage": usage.to_json(),
    }
    if call.fields.return_token_ids:
        body["prompt_token_ids"] = call.job.token_ids
    if call.fields.prompt_logprobs is not None and scores is not None:
        body["prompt_logprobs"] = prompt_logprobs(
            call.job.tokenizer, call.job.token_ids, scores, call.fields.prompt_logprobs
        )
    return body


def _whole_choice(call: ChatCall, index: int, choice: _Choice) -> dict[str, Any]:
    message = choice.message.to_json()
    if call.echoed:
        message["content"] = call.echoed + (message["content"] or "")
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(call, choice.tokens) if call.fields.logprobs else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": stop_reason(choice.end),
        **_ids(call, choice.tokens),
    }


def _logprobs(call: ChatCall, tokens: Sequence[Token]) -> dict[str, Any]:
    return chat_logprobs(tokens, by_id=call.fields.return_tokens_as_token_ids)


def _ids(call: ChatCall, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the tokens' ids, if they are wanted."""
    if not call.fields.return_token_ids:
        return {}
    return {"token_ids": [token.id for token in tokens]}


async def events(
    frontend: Frontend, exchange: Exchange, call: ChatCall
) -> AsyncGenerator[bytes, None]:
    """Yield the answer's events, ``[DONE]`` included."""
    usage = Usage(len(call.job.token_ids))
    choices = [_Choice(Speech(call.plan)) for _ in call.jobs]
    begun: set[int] = set()
    async with aclosing(generate_groups(frontend, exchange, [call.jobs])) as pieces:
        async for index, piece in pieces:
            if index not in begun:
                begun.add(index)
                yield _chunk(call, index, {"role": "assistant", "content": ""}, usage, first=True)
                if call.echoed:
                    yield _chunk(call, index, {"content": call.echoed}, usage)
            usage.add(piece)
            for each in _piece_chunks(call, index, choices[index], piece, usage):
                yield each
    if call.fields.wants_usage:
        last = {**call.envelope("chat.completion.chunk"), "choices": [], "usage": usage.to_json()}
        yield event(last)
    yield DONE


def _piece_chunks(
    call: ChatCall, index: int, choice: _Choice, piece: Piece, usage: Usage
) -> list[bytes]:
    """Return a piece's events: one per delta, the first with the tokens, the last with the end."""
    deltas = choice.read(piece)
    shows_tokens = call.fields.logprobs or call.fields.return_token_ids
    if not deltas and (piece.end or (shows_tokens and piece.tokens)):
        deltas = [{}]
    chunks = []
    for number, delta in enumerate(deltas, start=1):
        tokens = piece.tokens if number == 1 else ()
        more = _ids(call, tokens)
        if call.fields.logprobs:
            more["logprobs"] = _logprobs(call, tokens)
        if piece.end is not None and number == len(deltas):
            more["finish_reason"] = choice.finish_reason
            more["stop_reason"] = stop_reason(piece.end)
        chunks.append(_chunk(call, index, delta, usage, **more))
    return chunks


def _chunk(
    call: ChatCall,
    index: int,
    delta: dict[str, Any],
    usage: Usage,
    *,
    first: bool = False,
    **more: Any,
) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    chunk = {**call.envelope("chat.completion.chunk"), "choices": [choice]}
    if first and call.fields.return_token_ids:
        chunk["prompt_token_ids"] = call.job.token_ids
    if call.fields.wants_running_usage:
        chunk["usage"] = usage.to_json()
    return event(chunk)
