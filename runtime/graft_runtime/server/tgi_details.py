"""The details of a Text Generation Inference answer: tokens, alternatives, the prompt, the rest.

`tgi` calls it, for whole answers and for the last event of a stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graft_runtime.ipc.messages import TokenScore
from graft_runtime.server.alternatives import Alternative
from graft_runtime.server.generation import End, Job, Piece, Token
from graft_runtime.server.prompt_tokens import prompt_tokens
from graft_runtime.server.tgi_fields import Parameters


@dataclass(frozen=True)
class Call:
    """A request ready to run."""

    inputs: str
    parameters: Parameters
    jobs: tuple[Job, ...]
    """One, or as many as ``best_of`` asks for."""
    returns_prompt: bool
    validated_seconds: float
    model: str
    """The base model's name."""

    @property
    def job(self) -> Job:
        """The first one; all have the same prompt."""
        return self.jobs[0]

    def full_text(self, text: str) -> str:
        """Return the output, with the prompt before it if asked for."""
        return self.inputs + text if self.returns_prompt else text

    def seed(self, job: Job) -> int | None:
        """Return a job's seed, where one had a say."""
        return job.sampling.seed if self.parameters.samples else None


@dataclass
class Output:
    """What one job gave, as it grows."""

    job: Job
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    end: End | None = None
    prompt_scores: tuple[TokenScore, ...] | None = None
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0

    def add(self, piece: Piece) -> None:
        """Add one piece."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.end = piece.end
        self.queue_seconds = piece.queue_seconds or self.queue_seconds
        self.first_token_seconds = piece.first_token_seconds or self.first_token_seconds
        if piece.prompt_scores is not None:
            self.prompt_scores = piece.prompt_scores

    def mean_logprob(self) -> float:
        """Return what ``best_of`` compares."""
        values = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(values) / len(values) if values else -math.inf


def finish_reason(end: End | None) -> str:
    """Return TGI's word for an end."""
    if end is None or end.reason in ("length", "abort"):
        return "length"
    return "stop_sequence" if end.reason == "stop_string" else "eos_token"


def token_json(token: Token, parameters: Parameters) -> dict[str, Any]:
    """Return a token in the form of TGI, with what LoRAX adds."""
    body = {
        "id": token.id,
        "text": token.text,
        "logprob": token.logprob,
        "special": token.special,
        "skipped": False,
    }
    count = parameters.return_k_alternatives
    if count:
        body["alternative_tokens"] = [_alternative(each) for each in token.top[:count]]
    return body


def top_tokens(token: Token, count: int) -> list[dict[str, Any]]:
    """Return the likeliest tokens at one place."""
    return [{**_alternative(each), "special": each.special} for each in token.top[:count]]


def details(call: Call, best: Output, outputs: Sequence[Output]) -> dict[str, Any]:
    """Return the details of a whole answer.

    Args:
        call: The request.
        best: The output that is the answer.
        outputs: All of them, the best one among them.
    """
    prefill = _prefill(call, outputs[0].prompt_scores)
    body = {
        **_sequence(call, best, prefill),
        "prompt_tokens": len(call.job.token_ids),
        "skipped_tokens": 0,
    }
    if len(outputs) > 1:
        body["best_of_sequences"] = [
            {"generated_text": call.full_text(output.text), **_sequence(call, output, prefill)}
            for output in outputs
            if output is not best
        ]
    return body


def stream_details(call: Call, num_tokens: int, end: End | None) -> dict[str, Any]:
    """Return the details in a stream's last event."""
    return {
        "finish_reason": finish_reason(end),
        "generated_tokens": num_tokens,
        "skipped_tokens": 0,
        "seed": call.seed(call.job),
        "input_length": len(call.job.token_ids),
        "prompt_tokens": len(call.job.token_ids),
    }


def _sequence(call: Call, output: Output, prefill: list[dict[str, Any]]) -> dict[str, Any]:
    body = {
        "finish_reason": finish_reason(output.end),
        "generated_tokens": len(output.tokens),
        "seed": call.seed(output.job),
        "prefill": prefill,
        "tokens": [token_json(token, call.parameters) for token in output.tokens],
    }
    count = call.parameters.top_n_tokens
    if count:
        body["top_tokens"] = [top_tokens(token, count) for token in output.tokens]
    return body


def _prefill(call: Call, scores: tuple[TokenScore, ...] | None) -> list[dict[str, Any]]:
    """Return the prompt's tokens, if asked for; the first has no log probability."""
    if scores is None:
        return []
    tokens = prompt_tokens(call.job.tokenizer, call.job.token_ids, scores, 0)
    return [{"id": each.id, "text": each.text, "logprob": each.logprob} for each in tokens]


def _alternative(each: Alternative) -> dict[str, Any]:
    return {"id": each.id, "text": each.text, "logprob": each.logprob}
