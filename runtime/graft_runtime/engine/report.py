"""What a step has to say, and what has been done since start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from graft_runtime.engine.batch import Row
from graft_runtime.ipc.messages import AdapterResidency, StepFacts, TokenOutput


@dataclass
class Counters:
    """What has been done since start."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


@dataclass
class StepReport:
    """Everything one step has to say, for one message."""

    outputs: list[TokenOutput] = field(default_factory=list)
    adapters: list[AdapterResidency] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    """Requests that were launched for the first time."""
    steps: list[StepFacts] = field(default_factory=list)
    """The step that was retired, if one was."""
    num_tokens: int = 0
    """Tokens launched or retired. 0 with requests waiting: all of them wait for adapters."""


def step_facts(rows: Iterable[Row], *, failed: bool) -> StepFacts:
    """Return what a step's rows computed."""
    prompt = output = 0
    for row in rows:
        prompt_left = row.request.num_prompt - row.start
        if prompt_left > 0:
            prompt += min(row.num_tokens, prompt_left)
        output += row.samples
    return StepFacts(prompt, output, failed)
